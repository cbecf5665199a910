"use strict";
// Model output reaches the page only through textContent. `page` is the JSON that credit_page.py writes.
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const TOKENS_AT_ONCE = 16000;
  const [P, ASSOCIATION, GAIN, STRENGTH, PRESENCE, TF_CORRECT, TF_WRONG, FREQUENCY, VALUE] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  const LINKS_AROUND = 2;
  const OTHERS = page.settings.others, OWN = OTHERS.includes(page.settings.trained) ? page.settings.trained : null;
  const MODES = { grpo: OWN ? "base" : "GRPO", paper: "paper", reference: "reference", calibrated: "calibrated" };
  for (const name of OTHERS) MODES[name] = name;
  const isOther = () => OTHERS.includes(state.mode), isVariant = () => state.mode !== "grpo" && !isOther();
  const symbol = () => (state.mode === "grpo" ? "A" : isOther() ? "credit" : "K");
  const at = (id) => document.getElementById(id);
  const state = { group: 0, mode: OWN ?? page.settings.variant, order: "sampled", sort: "size", down: true, part: 0, pinned: null };
  let spans = [], byRef = [], current = null;

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  const signed = (x) => (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(3);
  const number = (x) => (x === 0 ? "0" : Math.abs(x) < 0.001 ? x.toExponential(1) : Math.abs(x) >= 1000 ? x.toPrecision(4) : x.toFixed(3)).replace("-", "−");

  const count = (x) => x.toLocaleString("en");
  function rolloutsOf(one) {
    const [first, last] = [one.rollouts[0], one.rollouts[one.rollouts.length - 1]];
    if (first !== last) return `rollouts ${first.number} to ${last.number}`;
    return `rollout ${first.number}` + (first.refs.length < first.tokens ? ` from token ${count(first.start + 1)}` : "");
  }

  // Characters that are invisible or change the text direction are shown as their code.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/u;
  function visible(text) {
    if (text === "") return "·";
    let shown = "";
    for (const character of text) {
      if (character === "\n") shown += "↵";
      else if (character === "\t") shown += "⇥";
      else if (HIDDEN.test(character)) shown += "‹" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "›";
      else shown += character;
    }
    return shown;
  }

  const group = () => page.groups[state.group];
  // In modes that are not a variant, the figures of K are those of the run's own variant.
  const shownVariant = () => (isVariant() ? state.mode : page.settings.variant);
  function isSkipped(rollout, position) {
    rollout.passive ??= new Set(rollout.skipped);
    return rollout.passive.has(position);
  }
  // As in training: nothing for tokens that the policy did not write, and no K without a verdict.
  function valueOf(ref, span) {
    const rollout = span && group().rollouts[span.rollout];
    if (rollout && isSkipped(rollout, span.position)) return 0;
    if (state.mode === "grpo") return rollout ? rollout.advantage : 0;
    if (isOther()) return rollout ? rollout.credit[state.mode]?.[span.position] ?? 0 : 0;
    if (rollout && rollout.verdict === "unknown") return 0;
    const variant = group().variants[state.mode], value = variant.measures[ref]?.[VALUE] ?? null;
    if (value === null) return 0;
    return value * variant.weight - (variant.shifts && rollout ? variant.shifts[span.rollout] : 0);
  }
  function most() {
    if (isVariant()) return page.settings.range[state.mode] || 1;
    if (isOther()) return group().rollouts.reduce((most, one) => (one.credit[state.mode] ?? []).reduce((m, x) => Math.max(m, Math.abs(x)), most), 1e-9);
    return Math.max(1e-9, ...group().rollouts.map((one) => Math.abs(one.advantage)));
  }
  function paint(target, value, limit) {
    const size = Math.min(1, Math.abs(value) / limit);
    target.classList.toggle("plus", value > 0);
    target.classList.toggle("minus", value < 0);
    target.style.setProperty("--size", size.toFixed(3));
  }

  // Mean and mean size over the action tokens of a rollout.
  function meansOf(i) {
    const rollout = group().rollouts[i];
    if (state.mode === "grpo") return [rollout.advantage, Math.abs(rollout.advantage)];
    if (!isOther()) return group().variants[state.mode].means[i];
    const values = (rollout.credit[state.mode] ?? []).filter((_, position) => !isSkipped(rollout, position)), n = Math.max(1, values.length);
    return [values.reduce((sum, x) => sum + x, 0) / n, values.reduce((sum, x) => sum + Math.abs(x), 0) / n];
  }

  function rolloutOrder() {
    const order = group().rollouts.map((_, i) => i);
    if (state.order === "verdict") {
      const rank = { correct: 0, wrong: 1, unknown: 2 };
      order.sort((x, y) => rank[group().rollouts[x].verdict] - rank[group().rollouts[y].verdict] || x - y);
    } else if (state.order === "credit") {
      const sizes = group().rollouts.map((_, i) => meansOf(i)[1]);
      order.sort((x, y) => sizes[y] - sizes[x] || x - y);
    }
    return order;
  }

  // The pieces of rollouts in each part: as many tokens as a browser can draw at once.
  function parts(order) {
    const found = [[]];
    let used = 0;
    for (const i of order) {
      const length = group().rollouts[i].refs.length;
      for (let first = 0; first === 0 || first < length; first += TOKENS_AT_ONCE) {
        const end = Math.min(length, first + TOKENS_AT_ONCE);
        if (used && used + end - first > TOKENS_AT_ONCE) { found.push([]); used = 0; }
        found[found.length - 1].push([i, first, end]);
        used += end - first;
      }
    }
    return found;
  }

  function drawRollouts() {
    const all = parts(rolloutOrder());
    state.part = Math.min(state.part, all.length - 1);
    spans = []; byRef = []; current = null; state.pinned = null;
    const box = document.createDocumentFragment(), limit = most();
    for (const piece of all[state.part]) box.append(drawRollout(...piece, limit));
    at("rollouts").replaceChildren(box);
    if (spans.length) spans[0].tabIndex = 0;
    const pager = at("pager");
    pager.replaceChildren();
    if (all.length > 1) {
      for (const [text, step] of [["‹ fewer", -1], ["more ›", 1]]) {
        const button = element("button", "", text);
        button.disabled = !all[state.part + step];
        button.onclick = () => { state.part += step; drawRollouts(); at("rollouts").focus(); };
        pager.append(button, " ");
      }
      pager.append(`part ${state.part + 1} of ${all.length}`);
    }
  }

  function drawRollout(i, from, end, limit) {
    const rollout = group().rollouts[i], first = rollout.start + from, last = rollout.start + end;
    const card = element("article", "rollout " + rollout.verdict);
    const marks = { correct: "✓ correct", wrong: "✗ wrong", unknown: "? unknown" };
    const head = element("h3");
    const which = last - first === rollout.tokens ? `${count(rollout.tokens)} tokens` : `tokens ${count(first + 1)} to ${count(last)} of ${count(rollout.tokens)}`;
    head.append(element("span", "badge", marks[rollout.verdict]), element("span", "", `rollout ${rollout.number} of ${group().size}`),
      element("span", "", `advantage ${signed(rollout.advantage)}`), element("span", "", which));
    if (state.mode !== "grpo") head.append(element("span", "", `mean ${symbol()} ${signed(meansOf(i)[0])}`));
    card.setAttribute("aria-label", `Rollout ${rollout.number}, ${rollout.verdict}, advantage ${rollout.advantage}`);
    card.setAttribute("role", "group");
    const text = element("div", "text");
    for (let position = from; position < end; position += 1) {
      const ref = rollout.refs[position], raw = rollout.texts[position] ?? group().texts[ref];
      const span = element("span", "t", raw.includes("\n") && !HIDDEN.test(raw) ? raw.replaceAll("\n", "↵\n") : visible(raw));
      if (raw === "" || HIDDEN.test(raw)) span.classList.add("odd");
      span.tabIndex = -1;
      span.index = spans.length; span.ref = ref; span.rollout = i; span.position = position;
      if (isSkipped(rollout, position)) span.classList.add("skipped");
      paint(span, valueOf(ref, span), limit);
      spans.push(span);
      (byRef[ref] ??= []).push(span);
      text.append(span);
    }
    card.append(head, text);
    return card;
  }

  function show(ref, span) {
    if (current) for (const one of byRef[current.ref] ?? []) one.classList.remove("same", "now");
    current = { ref, span };
    for (const one of byRef[ref] ?? []) one.classList.add("same");
    if (span) span.classList.add("now");
    for (const row of at("tokens").querySelectorAll("tr.now")) row.classList.remove("now");
    at("tokens").querySelector(`tr[data-ref="${ref}"]`)?.classList.add("now");
    drawDetail(ref, span);
  }

  function drawDetail(ref, span) {
    const data = group(), counts = data.counts[ref], rollout = span && data.rollouts[span.rollout];
    const text = visible(rollout ? rollout.texts[span.position] ?? data.texts[ref] : data.texts[ref]);
    const value = valueOf(ref, span), name = symbol(), shown = span || isVariant();
    const head = element("div", "detail-head"), box = document.createDocumentFragment();
    head.append(element("code", "", text), element("span", "value", shown ? `${name} ${signed(value)}` : ""));
    box.append(head, element("p", "hint", `id ${data.ids[ref]}, ${count((byRef[ref] ?? []).length)} occurrences marked here`));
    const why = whyNothing(ref, span);
    if (why) box.append(element("p", "why", why));
    if (counts) box.append(tableOf(counts), figuresOf(ref, span, value));
    const where = counts ? `in ${counts[0]} correct and ${counts[1]} wrong rollouts, p ${number(data.variants[shownVariant()].measures[ref][P])}` : "in no rollout with a verdict";
    at("spoken").textContent = [text, shown && `${name} ${signed(value)}`, where, why].filter(Boolean).join(", ");
    at("detail").replaceChildren(box);
  }
  function whyNothing(ref, span) {
    const data = group(), rollout = span && data.rollouts[span.rollout];
    if (rollout && isSkipped(rollout, span.position)) return "The policy did not write this token: training gives it no credit.";
    if (isOther() && rollout) return rollout.verdict === "unknown" ? "This rollout has no verdict, so its tokens get no credit." : "";
    if (!data.counts[ref]) return "Only rollouts without a verdict contain it, so it is in no table and its K is 0.";
    if (rollout?.verdict === "unknown") return "This rollout has no verdict, so its tokens get no K.";
    if (data.mixed && data.variants[shownVariant()].measures[ref][VALUE] === null) return "A special or excluded token: it never gets K.";
    return "";
  }
  function tableOf([a, b, c, d]) {
    const table = element("table", "two");
    [["rollouts", "correct", "wrong"], ["with it", a, b], ["without it", c, d]].forEach((cells, r) => {
      const row = element("tr");
      cells.forEach((cell, k) => {
        const made = element(r && k ? "td" : "th", "", String(cell));
        if (!(r && k)) made.scope = r ? "row" : "col";
        row.append(made);
      });
      table.append(row);
    });
    return table;
  }
  function figuresOf(ref, span, value) {
    const data = group(), variant = data.variants[shownVariant()], m = variant.measures[ref], list = element("dl");
    const [usesCorrect, usesWrong] = data.counts[ref].slice(4), [tokensCorrect, tokensWrong] = data.sides.tokens;
    const share = (uses, tokens) => `${count(uses)} of ${count(tokens)} tokens, ${tokens ? (100 * uses / tokens).toFixed(2) : "0"} %`;
    const tf = (x) => (data.mixed ? number(x) : "–");
    const rows = [
      ["variant", shownVariant()],
      ["Fisher p", number(m[P])], ["association F", number(m[ASSOCIATION])], ["information gain IG", `${number(m[GAIN])} bit`],
      ["TF in correct (BM25)", tf(m[TF_CORRECT]), share(usesCorrect, tokensCorrect)],
      ["TF in wrong (BM25)", tf(m[TF_WRONG]), share(usesWrong, tokensWrong)],
      ["strength", number(m[STRENGTH])], ["direction: presence", number(m[PRESENCE])], ["direction: frequency", number(m[FREQUENCY])],
    ];
    if (variant.weight !== 1) rows.push(["weight", number(variant.weight)]);
    const rollout = span && data.rollouts[span.rollout], acted = rollout && !isSkipped(rollout, span.position);
    if (acted && variant.shifts && rollout.verdict !== "unknown" && m[VALUE] !== null) rows.push(["minus the rollout's mean", signed(-variant.shifts[span.rollout])]);
    if (isVariant() || (span && isOther())) rows.push([symbol(), signed(value)]);
    if (acted) rows.push(["rollout advantage A", signed(rollout.advantage)]);
    if (acted && state.mode !== "grpo") rows.push([`A + ${symbol()}`, signed(rollout.advantage + value)]);
    for (const [term, definition, more] of rows) {
      const given = element("dd", "", definition);
      if (more) given.append(element("small", "", more));
      list.append(element("dt", "", term), given);
    }
    return list;
  }

  function drawTokens() {
    const data = group(), limit = most(), variant = data.variants[shownVariant()];
    const columns = { size: "|K|", value: "K", p: "p", correct: "in ✓", wrong: "in ✗" };
    const rows = data.ids.map((_, ref) => ref).filter((ref) => data.counts[ref]).map((ref) => {
      const value = (variant.measures[ref][VALUE] ?? 0) * variant.weight;
      return { ref, size: Math.abs(value), value, p: variant.measures[ref][P], correct: data.counts[ref][0], wrong: data.counts[ref][1] };
    });
    const sign = state.down ? -1 : 1;
    rows.sort((x, y) => sign * (x[state.sort] - y[state.sort]) || y.size - x.size || x.ref - y.ref);
    const table = at("tokens"), head = element("thead"), line = element("tr");
    line.append(element("th", "", "token"));
    for (const [key, title] of Object.entries(columns)) {
      const cell = element("th"), button = element("button", "", title + (key === state.sort ? (state.down ? " ↓" : " ↑") : ""));
      cell.scope = "col";
      if (key === state.sort) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      button.type = "button"; button.dataset.sort = key;
      button.onclick = () => {
        state.down = key === state.sort ? !state.down : key !== "p";
        state.sort = key; drawTokens();
        at("tokens").querySelector(`button[data-sort="${key}"]`).focus();
      };
      cell.append(button); line.append(cell);
    }
    head.append(line);
    const body = element("tbody");
    for (const row of rows.slice(0, 200)) {
      const made = element("tr"), first = element("td"), button = element("button", "", visible(data.texts[row.ref]));
      button.type = "button"; button.title = visible(data.texts[row.ref]);
      first.classList.add(row.value > 0 ? "plus" : row.value < 0 ? "minus" : "none");
      button.style.setProperty("--size", Math.min(1, row.size / (isVariant() ? limit : page.settings.range[page.settings.variant] || 1)).toFixed(3));
      made.dataset.ref = row.ref;
      first.append(button); made.append(first);
      for (const text of [row.size.toFixed(3), signed(row.value), number(row.p), row.correct, row.wrong]) made.append(element("td", "", String(text)));
      made.onclick = () => { state.pinned = row.ref; show(row.ref, null); byRef[row.ref]?.[0]?.scrollIntoView({ block: "center" }); };
      body.append(made);
    }
    table.replaceChildren(head, body);
    at("tokens-title").textContent = `Tokens of ${data.cut ? "this part" : "the group"} (${rows.length > 200 ? "200 of " : ""}${rows.length}) · K ${shownVariant()}`;
  }

  function drawTop() {
    const tops = page.tops[group().step]?.[shownVariant()];
    const box = element("div", "two-lists");
    for (const [side, title, none] of [["highest", "highest mean K", "none above 0"], ["lowest", "lowest mean K", "none below 0"]]) {
      const column = element("div"), list = element("ol");
      for (const one of tops?.[side] ?? []) {
        const item = element("li");
        item.append(element("code", "", visible(one.text)), element("span", "", `${signed(one.k)} × ${one.count}`));
        list.append(item);
      }
      column.append(element("h3", "", title), list.children.length ? list : element("p", "hint", none));
      box.append(column);
    }
    at("top").replaceChildren(box);
    at("top-title").textContent = `${page.settings.stored ? "Top tokens of all problems" : `Top tokens of step ${group().step}`} · K ${shownVariant()}`;
  }

  function drawLegend() {
    const bar = element("i");
    for (const value of [-1, -0.66, -0.33, 0, 0.33, 0.66, 1]) {
      const cell = element("b", "t");
      paint(cell, value, 1);
      bar.append(cell);
    }
    const limit = most(), what = state.mode === "grpo" ? "advantage of the rollout" : isOther() ? `credit by ${state.mode}` : "K";
    at("legend").replaceChildren(element("span", "", "−" + number(limit)), bar, element("span", "", `+${number(limit)} ${what}`));
    at("legend").setAttribute("aria-label", `Colours: orange and dotted below 0, blue above 0, up to ${number(limit)}; ${what}`);
  }

  function drawModes() {
    const box = at("modes");
    box.replaceChildren();
    for (const [mode, title] of Object.entries(MODES)) {
      const button = element("button", "", title);
      button.type = "button"; button.dataset.mode = mode;
      button.setAttribute("role", "radio");
      button.setAttribute("aria-checked", String(mode === state.mode));
      button.tabIndex = mode === state.mode ? 0 : -1;
      button.onclick = () => setMode(mode);
      box.append(button);
    }
  }
  function setMode(mode) {
    state.mode = mode;
    const kept = current && { ref: current.ref, index: current.span?.index };
    draw();
    if (kept) show(kept.ref, spans[kept.index] ?? null);
    at("modes").querySelector(`[data-mode="${mode}"]`).focus();
  }

  function drawNotice() {
    const box = at("notice"), data = group();
    const texts = [];
    if (data.cut) texts.push(`The group is too large for one page: this part has ${rolloutsOf(data)}, the others follow.`);
    if (data.mixed && isVariant() && !data.variants[state.mode].means.some((one) => one[1] > 0)) texts.push(`No token of these rollouts gets K under ${state.mode}${state.mode === "calibrated" ? ": differences like theirs come up by chance" : ""}.`);
    if (isOther()) texts.push(`What ${state.mode} adds to a token's advantage${state.mode === page.settings.trained ? ", as recorded" : ", computed here with its defaults"}. The tables are KTAE's.`);
    if (!data.mixed) texts.push("All rollouts with a verdict have the same one, so no token separates right from wrong and every K is 0.");
    if (page.settings.shadow) texts.push(`Shadow run: ${page.settings.trained === "ktae" ? "K" : "credit"} was logged, and training used the advantages without it.`);
    else if (OWN && isVariant()) texts.push(`This run trained with ${page.settings.trained}; K is computed here from its rollouts.`);
    else if (!page.settings.enabled) texts.push("This run trained without K; it is computed here from its rollouts.");
    if (page.settings.shuffled) texts.push("Control run: its K came from labels shuffled within each group. K shown here comes from the true labels; training did not use it.");
    box.hidden = texts.length === 0;
    box.textContent = texts.join(" ");
  }

  function draw() {
    const data = group();
    at("problem").textContent = data.prompt.split("\n").map((line) => (line ? visible(line) : "")).join("\n");
    at("gold").replaceChildren("right answer ", element("b", "", visible(data.label)), ` · ${data.sides.rollouts[0]} correct, ${data.sides.rollouts[1]} wrong of ${data.size} · judged by ${page.settings.judged}`);
    drawModes(); drawLegend(); drawNotice(); drawRollouts(); drawTokens(); drawTop();
    at("choose").value = String(state.group);
    at("previous").disabled = state.group === 0;
    at("next").disabled = state.group === page.groups.length - 1;
    document.body.dataset.ready = String(Math.round(performance.now()));
  }
  function setGroup(index) { state.group = index; state.part = 0; draw(); }

  function move(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return; // the browser's own
    const focused = document.activeElement;
    if (focused.parentElement === at("modes") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      const names = Object.keys(MODES), step = event.key === "ArrowRight" ? 1 : -1;
      setMode(names[(names.indexOf(state.mode) + step + names.length) % names.length]);
      event.preventDefault();
    }
    if (event.key === "Escape") state.pinned = null;
    if (focused.ref === undefined) return;
    const jumps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };
    let next = null;
    if (event.key in jumps) next = spans[Math.min(spans.length - 1, Math.max(0, focused.index + jumps[event.key]))];
    else if (event.key === "Home") next = spans.find((one) => one.rollout === focused.rollout);
    else if (event.key === "End") next = spans.findLast((one) => one.rollout === focused.rollout);
    else if (event.key === "n") { const same = byRef[focused.ref]; next = same[(same.indexOf(focused) + 1) % same.length]; }
    else if (event.key === "Enter") { state.pinned = focused.ref; event.preventDefault(); }
    if (next) { state.pinned = null; next.focus(); event.preventDefault(); }
  }

  at("rollouts").addEventListener("mouseover", (event) => {
    const span = event.target.closest(".t");
    if (span?.ref !== undefined && state.pinned === null) show(span.ref, span);
  });
  at("rollouts").addEventListener("click", (event) => {
    const span = event.target.closest(".t");
    if (span?.ref !== undefined) { show(span.ref, span); state.pinned = span.ref; }
  });
  at("rollouts").addEventListener("focusin", (event) => {
    if (event.target.ref === undefined) return;
    for (const one of spans) if (one.tabIndex === 0) one.tabIndex = -1;
    event.target.tabIndex = 0;
    show(event.target.ref, event.target);
  });
  document.addEventListener("keydown", move);
  at("previous").onclick = () => setGroup(state.group - 1);
  at("next").onclick = () => setGroup(state.group + 1);
  at("choose").onchange = (event) => setGroup(Number(event.target.value));
  at("order").onchange = (event) => { state.order = event.target.value; state.part = 0; drawRollouts(); };

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (isDark) => { document.documentElement.dataset.theme = isDark ? "dark" : "light"; };
  setTheme(dark.matches);
  dark.addEventListener("change", (event) => setTheme(event.matches));
  at("theme").onclick = () => setTheme(document.documentElement.dataset.theme !== "dark");

  const options = Object.entries(page.settings.options).map(([name, value]) => `${name} ${value}`);
  at("about").textContent = [page.settings.model, page.settings.estimator && `base ${page.settings.estimator}`, OWN ?? `KTAE ${page.settings.variant}`, ...options].filter(Boolean).join(" · ");
  page.groups.forEach((one, i) => {
    const [correct, wrong] = one.sides.rollouts;
    const option = element("option", "", `${page.settings.stored ? "problem" : `step ${one.step}, group`} ${one.group + 1}: ${correct} ✓ ${wrong} ✗${one.cut ? `, ${rolloutsOf(one)}` : ""}`);
    option.value = String(i);
    at("choose").append(option);
  });
  function drawFiles() {
    const last = page.files.length - 1, near = (i) => i === 0 || i === last || Math.abs(i - page.file) <= LINKS_AROUND;
    page.files.forEach((file, i) => {
      if (!near(i)) { if (near(i - 1)) at("files").append(" …"); return; }
      const link = element(i === page.file ? "b" : "a", "", String(i + 1));
      if (i !== page.file) { link.href = file; link.setAttribute("aria-label", `Page ${i + 1}`); }
      at("files").append(" ", link);
    });
  }
  if (page.files.length > 1) drawFiles();
  const telling = page.groups.findIndex((one) => one.variants[page.settings.variant].means.some(([, size]) => size > 0));
  state.group = telling >= 0 ? telling : Math.max(0, page.groups.findIndex((one) => one.mixed));
  draw();
})();
