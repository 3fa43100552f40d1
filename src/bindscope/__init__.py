"""bindscope: when does a language model bind a multi-token term into one concept, and when does it know the term?

Importing this package loads neither torch nor transformers.
"""

from importlib.metadata import version

__version__ = version("bindscope")
