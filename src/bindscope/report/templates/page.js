"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const make = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const number = (milli) => milli === null || milli === undefined ? "not available" : (milli / 1000).toFixed(3).replace("-", "\u2212");

  // A box that scrolls can be reached by keyboard; one that does not is no stop on the way.
  const boxes = () => document.querySelectorAll(".scroll").forEach((box) => {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0; else box.removeAttribute("tabindex");
  });
  addEventListener("resize", boxes);
  document.addEventListener("toggle", boxes, true);
  boxes();

  addEventListener("beforeprint", () => document.querySelectorAll("details.words").forEach((d) => { d.open = true; }));

  const save = (name, type, content) => {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const drawing = (svg) => {
    const style = getComputedStyle(document.documentElement);
    return new XMLSerializer().serializeToString(svg).replace(/var\((--\w+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  };

  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text());
  };
  const data = byId("data");
  if (!data || typeof DecompressionStream === "undefined") return;
  unpack(JSON.parse(data.textContent).gzip).then((found) => { downloads(found.csv); if (found.explorer.suites) explore(found.explorer); });

  function downloads(csv) {
    document.querySelectorAll(".downloads").forEach((row) => {
      const name = row.dataset.name, title = row.dataset.title;
      const add = (label, act) => {
        const button = make("button", label);
        button.type = "button";
        button.append(make("span", ` of ${title}`, "vh"));
        button.addEventListener("click", act);
        row.append(button);
      };
      const svg = byId(`${name}-drawing`);
      if (svg) add("Download SVG", () => save(`${name}.svg`, "image/svg+xml", drawing(svg.querySelector("svg"))));
      if (csv[name] !== undefined) add("Download CSV", () => save(`${name}.csv`, "text/csv", csv[name]));
      row.hidden = false;
    });
  }

  function explore(found) {
    const suite = byId("x-suite"), point = byId("x-point"), term = byId("x-term"), prompt = byId("x-prompt");
    const fill = (select, items, keep) => {
      const before = select.value;
      select.replaceChildren(...items.map(([value, text]) => { const o = make("option", text); o.value = value; return o; }));
      if (keep && items.some(([value]) => String(value) === before)) select.value = before;
    };
    const current = () => found.suites[suite.value || 0];
    const suites = () => fill(suite, found.suites.map((s, i) => [i, s.name]));
    const points = () => {
      const all = current().checkpoints, label = all.map((c, i) => [i, c.label]);
      fill(point, label);
      point.value = String(all.length - 1);
    };
    const terms = () => fill(term, [...new Set(current().prompts.map((p) => p.term))].map((t) => [t, t]), true);
    const prompts = () => fill(prompt, current().prompts.map((p, i) => [i, p]).filter(([, p]) => p.term === term.value)
      .map(([i, p]) => [i, p.kind]), false);
    suite.addEventListener("change", () => { points(); terms(); prompts(); show(); });
    point.addEventListener("change", () => show());
    term.addEventListener("change", () => { prompts(); show(); });
    prompt.addEventListener("change", () => show());
    let head = 0;

    function show() {
      const item = current().prompts[prompt.value], at = current().checkpoints[point.value], values = at.values[prompt.value];
      head = 0;
      heads(item, values);
      tokens(item, values);
      choices(item, values);
      texts(values);
      const said = !values ? "not measured at this checkpoint"
        : values.cut ? "cut into other tokens than at the first checkpoint, so not shown" : values.eb === undefined ? `no binding value: ${item.reason}`
        : `EB* ${number(values.eb)}, window null ${number(values.null)}, excess ${number(values.excess)}`;
      byId("x-status").textContent = `${item.term}, ${item.kind}, ${at.label}: ${said}.`;
      boxes();
    }

    const named = (index) => `${Math.floor(index / current().heads)}.${index % current().heads}`;

    function heads(item, values) {
      const box = byId("x-heads"), top = (values && values.top) || [];
      box.hidden = !top.length;
      const options = top.map(([index, bsi, previous], i) => {
        const label = make("label"), radio = make("input");
        radio.type = "radio"; radio.name = "x-head"; radio.value = i; radio.checked = i === 0;
        radio.addEventListener("change", () => { head = i; tokens(item, values); });
        label.append(radio, ` ${named(index)}: BSI ${number(bsi)}, previous-token score ${number(previous)}`);
        return label;
      });
      box.replaceChildren(make("legend", "Head (layer.head, highest BSI first) whose attention is shown"), ...options);
    }

    function tokens(item, values) {
      const top = values && values.top && values.top[head], last = item.span[item.span.length - 1];
      byId("x-looks").textContent = top
        ? `Attention of head ${named(top[0])} from the last token of the term to the tokens before it and to itself, as shares.`
        : "No attention is stored for this prompt.";
      byId("x-tokens").replaceChildren(...item.tokens.map((text, i) => {
        const li = make("li"), inside = item.span.includes(i), seen = top && i <= last ? top[3][i] : 0;
        li.append(make("bdi", text.replace(/ /g, "\u00b7").replace(/\n/g, "\u23ce")));
        if (inside) { li.className = i === last ? "term looks" : "term"; li.append(make("span", i === last ? " (last token of the term)" : " (of the term)", "vh")); }
        if (top && i > last) li.classList.add("later");
        else if (top) {
          const bar = make("span", undefined, "bar"), fill = make("i");
          fill.style.height = `${seen}%`;
          bar.append(fill);
          li.append(bar, make("small", (seen / 100).toFixed(2)));
        }
        return li;
      }));
    }

    function choices(item, values) {
      const box = byId("x-choices"), asked = (values && values.asked) || [];
      box.hidden = !asked.length;
      if (!asked.length) return;
      const table = make("table"), headRow = make("tr"), body = make("tbody");
      table.append(make("caption", "Answers to the question", "vh"));
      const scoped = (tag, text, scope) => { const cell = make(tag, text); cell.scope = scope; return cell; };
      headRow.append(scoped("th", "Answer", "col"), ...asked.map((_, r) => scoped("th", `Order ${r + 1}`, "col")));
      const headPart = make("thead"); headPart.append(headRow); table.append(headPart, body);
      item.choices.forEach((text, c) => {
        const row = make("tr");
        row.append(scoped("th", text + (c === item.gold ? " (right answer)" : ""), "row"));
        asked.forEach(([order, logs, chosen]) => {
          const place = order.indexOf(c), took = place === chosen;
          const value = (logs[place] / 100).toFixed(2).replace("-", "\u2212");
          row.append(make("td", `${value} (${String.fromCharCode(65 + place)})${took ? " \u25c0 chosen" : ""}`, took ? "chosen" : ""));
        });
        body.append(row);
      });
      byId("x-table").replaceChildren(table);
    }

    const SHOTS = { zero: "Without an exemplar", exemplar: "Behind the term's own exemplar", paraphrase: "Behind a paraphrase without keywords", mismatched: "Behind another term's exemplar" };

    function texts(values) {
      const box = byId("x-texts"), all = (values && values.texts) || [];
      box.hidden = !all.length;
      byId("x-written").replaceChildren(...all.flatMap(([shot, text, score, matched, contradicted, copied]) => {
        const title = make("h4", SHOTS[shot] || shot), body = make("p", undefined, "answer");
        body.dir = "auto";
        body.append(...marked(text, matched));
        const said = `Rubric score ${number(score)}; keywords: ${matched.join(", ") || "none"}`
          + (copied.length ? `; of them in the exemplar: ${copied.join(", ")}` : "")
          + (contradicted.length ? `; contradicted by: ${contradicted.join(", ")}` : "");
        return [title, body, make("p", said, "soft")];
      }));
    }

    function marked(text, keywords) {
      if (!keywords.length) return [text];
      const found = keywords.map((k) => k.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).sort((a, b) => b.length - a.length);
      const parts = text.split(new RegExp(`(${found.join("|")})`, "gi"));
      return parts.map((part, i) => i % 2 ? make("mark", part) : part);
    }

    if (found.shown < found.measured) byId("x-part").textContent = `To keep the page small it holds ${found.shown} of ${found.measured} checkpoints; all are in the results folder.`;
    suites(); points(); terms(); prompts(); show();
    byId("x-needs").hidden = true;
    byId("x").hidden = false;
    boxes();
  }
})();
