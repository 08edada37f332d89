// The full table of facts: search, filters, sorting and pages. The page's other parts need no script.
"use strict";
(() => {
  const { runs, facts } = JSON.parse(document.getElementById("data").textContent);
  const host = document.getElementById("fact-table");
  const PAGE = 50;
  const LONG = 160;
  const OUTCOMES = ["learned", "not_learned", "kept", "forgotten", "relearned", "gained", "never_knew"];
  const LABELS = ["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"];
  const outcomeLabel = (outcome) => outcome.replace("_", " ");
  /** Relearned: correct after an epoch, wrong after a later one, correct at the end. */
  const relearned = (after) => after?.forgotten_once && after.correct;
  const hasOutcome = (after, outcome) => outcome === "relearned" ? relearned(after) : after?.outcome === outcome;
  /** A probability in percent with two significant digits; 99.5% and above with more, so that only 1 is 100%. */
  const percent = (p) => p == null ? "" : p === 1 ? "100%" : p >= 0.995 ? `${(100 * Math.min(p, 0.9999)).toFixed(2)}%`
    : `${Number((100 * p).toPrecision(2))}%`;

  /** An element with properties and children; strings become text, never markup. */
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  function text(value) {
    if (!value.trim()) return make("span", { className: "none" }, "empty");
    if (value.length <= LONG) return make("bdi", {}, value);
    const start = Array.from(value.slice(0, LONG)).slice(0, 120).join("");
    return make("details", { className: "long" },
      make("summary", {}, make("bdi", {}, start), "… ", make("span", { className: "more" }, `(${value.length} characters)`)),
      make("bdi", {}, value));
  }

  function answer(value, correct) {
    const word = correct ? "correct" : "wrong";
    return make("div", { className: word }, make("span", { className: "vh" }, `${word}: `), text(value));
  }

  /** The line below an answer: notes and the probability of the correct answer. */
  function footnote(notes, p) {
    if (p != null) notes.push(`p ${percent(p)}`);
    return notes.length ? make("small", {}, notes.join(", ")) : "";
  }

  /** The nearest new facts before training. */
  function nearest(fact) {
    if (!fact.nearest?.length) return make("span", { className: "none" }, "–");
    const rows = fact.nearest.map(([subject, object, cosine]) =>
      make("div", {}, text(subject), " → ", text(object), make("small", { className: "inline" }, ` ${cosine.toFixed(2)}`)));
    return make("div", { className: "near" }, ...rows);
  }

  // The state of the table: query, filters, order, page.
  const filters = [];
  let query = "";
  let sorted = null;
  let descending = false;
  let page = 0;

  const distinct = (values, order) => {
    const found = [...new Set(values.filter((value) => value != null))];
    return order ? order.filter((value) => found.includes(value)) : found.sort();
  };

  function select(label, values, matches, name = (value) => value) {
    const filter = { value: "", matches, control: make("select", {}, make("option", { value: "" }, "all")) };
    for (const value of values) filter.control.append(make("option", { value }, name(value)));
    filter.control.addEventListener("change", () => { filter.value = filter.control.value; page = 0; draw(); });
    filters.push(filter);
    return make("label", {}, label, filter.control);
  }

  const search = make("input", { type: "search", autocomplete: "off", placeholder: "question, subject or answer" });
  let pause;
  search.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => { query = search.value.trim().toLowerCase(); page = 0; draw(); }, 120);
  });
  const haystack = (fact) => (fact.haystack ??= [fact.question, fact.subject, fact.object, fact.relation, fact.before.answer,
    ...fact.after.map((after) => after?.answer ?? "")].join("\n").toLowerCase());

  const outcomeFilters = [];
  const controls = make("div", { className: "controls", role: "search", "aria-label": "Facts" },
    make("label", { className: "wide" }, "Search", search),
    select("Group", distinct(facts.map((fact) => fact.split)), (fact, value) => fact.split === value),
    select("Relation", distinct(facts.map((fact) => fact.relation)), (fact, value) => fact.relation === value),
    select("Label before", distinct(facts.map((fact) => fact.label), LABELS), (fact, value) => fact.label === value));
  runs.forEach((run, i) => {
    const found = OUTCOMES.filter((outcome) => facts.some((fact) => hasOutcome(fact.after[i], outcome)));
    controls.append(select(run.short, found, (fact, value) => hasOutcome(fact.after[i], value), outcomeLabel));
    outcomeFilters.push(filters[filters.length - 1]);
  });

  const hasNearest = facts.some((fact) => fact.nearest?.length);
  const columns = [
    { name: "Question", key: (fact) => fact.question },
    { name: "Correct answer", key: (fact) => fact.object },
    { name: "Group", key: (fact) => fact.split },
    { name: "Relation", key: (fact) => fact.relation },
    { name: "Label before", key: (fact) => fact.label ?? "" },
    { name: "Before", key: (fact) => fact.before.answer },
    ...runs.map((run, i) => ({ name: run.short, style: run.style, key: (fact) => fact.after[i]?.outcome ?? "",
      then: (fact) => fact.after[i]?.p ?? 0 })),
    ...(hasNearest ? [{ name: "Nearest new facts", key: (fact) => -(fact.nearest?.[0]?.[2] ?? -2) }] : []),
  ];
  const headers = columns.map((column) => {
    const button = make("button", { type: "button" }, column.name);
    const header = make("th", { scope: "col", "aria-sort": "none" }, button);
    if (column.style != null) button.classList.add(`s${column.style}`);
    button.addEventListener("click", () => {
      descending = sorted === column && !descending;
      sorted = column;
      columns.forEach((other, i) => headers[i].setAttribute("aria-sort",
        other !== column ? "none" : descending ? "descending" : "ascending"));
      page = 0;
      draw();
    });
    return header;
  });
  const collator = new Intl.Collator("en", { numeric: true });

  function paraphrases(fact) {
    const byQuestion = new Map();
    fact.after.forEach((after, i) => (after?.paraphrases ?? []).forEach((row) => {
      if (!byQuestion.has(row.question)) byQuestion.set(row.question, []);
      byQuestion.get(row.question).push([runs[i].short, row]);
    }));
    if (!byQuestion.size) return "";
    const details = make("details", {}, make("summary", {}, make("small", { className: "inline" }, "paraphrased")));
    for (const [question, rows] of byQuestion) {
      details.append(make("div", {}, text(question)));
      for (const [short, row] of rows) details.append(make("small", {}, `${short}: `, answer(row.answer, row.correct)));
    }
    return details;
  }

  function row(fact) {
    const cells = fact.after.map((after) => after
      ? make("td", {}, answer(after.answer, after.correct),
        footnote([outcomeLabel(after.outcome), relearned(after) && "relearned", after.label].filter(Boolean), after.p))
      : make("td", {}, make("span", { className: "none", title: "not evaluated in this run" }, "–")));
    return make("tr", {},
      make("th", { scope: "row" }, text(fact.question), paraphrases(fact)),
      make("td", {}, text(fact.object)),
      make("td", {}, fact.split),
      make("td", {}, text(fact.relation)),
      make("td", {}, fact.label ?? "–"),
      make("td", {}, answer(fact.before.answer, fact.before.correct),
        footnote(fact.few_shot && fact.before.correct ? ["known (few-shot)"] : [], fact.before.p)),
      ...cells,
      ...(hasNearest ? [make("td", {}, nearest(fact))] : []));
  }

  const title = document.getElementById("facts-title");
  const body = make("tbody");
  const status = make("span", { role: "status" });
  const previous = make("button", { type: "button" }, "Previous");
  const next = make("button", { type: "button" }, "Next");
  const turn = (by) => () => { page += by; draw(); box.scrollIntoView({ block: "nearest" }); };
  previous.addEventListener("click", turn(-1));
  next.addEventListener("click", turn(1));

  function draw() {
    const chosen = filters.filter((filter) => filter.value);
    const found = facts.filter((fact) => chosen.every((filter) => filter.matches(fact, filter.value))
      && (!query || haystack(fact).includes(query)));
    if (sorted) {
      const sign = descending ? -1 : 1;
      const by = (a, b) => typeof a === "number" ? a - b : collator.compare(a, b);
      const then = sorted.then ?? (() => 0);
      found.sort((a, b) => sign * by(sorted.key(a), sorted.key(b)) || then(a) - then(b));
    }
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = found.slice(page * PAGE, (page + 1) * PAGE);
    body.replaceChildren(...shown.map(row));
    const count = found.length.toLocaleString("en");
    const all = facts.length.toLocaleString("en");
    const noun = facts.length === 1 ? "fact" : "facts";
    title.textContent = found.length === facts.length ? `All ${all} ${noun}` : `${count} of ${all} ${noun}`;
    status.textContent = found.length
      ? `${page * PAGE + 1}–${page * PAGE + shown.length} of ${count} facts`
      : "No fact matches.";
    previous.disabled = page === 0;
    next.disabled = page === pages - 1;
  }

  const box = make("div", { className: "scroll", role: "region", tabIndex: 0, "aria-labelledby": "facts-title" },
    make("table", {}, make("thead", {}, make("tr", {}, ...headers)), body));
  host.append(controls, box, make("div", { className: "pager" }, previous, next, status));
  draw();

  for (const button of document.querySelectorAll("[data-filter]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      search.value = query = "";
      for (const filter of filters) filter.control.value = filter.value = "";
      for (const pair of button.dataset.filter.split(" ")) {
        const [run, outcome] = pair.split(":");
        const filter = outcomeFilters[Number(run)];
        filter.control.value = filter.value = outcome;
      }
      page = 0;
      draw();
      document.getElementById("facts").scrollIntoView();
    });
  }
})();
