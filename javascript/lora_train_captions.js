/* The Captions panel: a paged gallery with filters, a tag list, an editor for one caption and edits for many.
   Everything is asked from the server a page at a time; nothing here grows with the data set. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const whole = (value) => value.toLocaleString("en-US");
    const TYPING_MS = 350;
    const COUNTING_MS = 1500;
    const LIMITS = [75, 150, 225];

    let place = null;
    let shown = null; // the server's last answer: one page
    let edited = null; // the number of the caption in the editor
    const selected = new Set();
    const filter = { all_of: "", any_of: "", none_of: "", text: "", untagged: false, fewest: "", most: "" };
    const part = (name) => place.querySelector(`.lt-c-${name}`);

    const later = (work) => {
        let timer = null;
        return () => {
            clearTimeout(timer);
            timer = setTimeout(work, TYPING_MS);
        };
    };

    // --- asking -----------------------------------------------------------------------------------
    const tell = (text, isBad = false) => {
        const line = part("told");
        line.textContent = text;
        line.className = `lt-c-told ${isBad ? "lt-bad" : "lt-faint"}`;
    };
    const asked = (name, values) => lt.ask(`captions-${name}`, values).catch((problem) => {
        tell(problem.message, true);
        return null;
    });

    async function open() {
        const answer = await asked("open", { folder: part("folder").value });
        if (!answer) return;
        selected.clear();
        edited = null;
        await takeWords();
        take(answer);
        tell("");
    }

    async function show(page = shown ? shown.page : 0) {
        if (!shown) return;
        const answer = await asked("show", { filter, page });
        if (answer) take(answer);
    }
    const showSoon = later(() => show(0));

    function take(answer) {
        shown = answer;
        drawGallery();
        drawTags();
        part("undo").disabled = !answer.undo;
        part("undo").textContent = answer.undo ? `Undo (${answer.undo})` : "Undo";
        previewSoon();
        place.dispatchEvent(new CustomEvent("lt-shown"));
        if (answer.pictures.some((one) => one.tokens === null)) setTimeout(() => shown === answer && show(), COUNTING_MS);
    }

    /** The trigger and the class word of the chosen folder are what the edits begin with. */
    async function takeWords() {
        const chosen = (place.folders || []).find((one) => one.folder === part("folder").value);
        place.words = chosen || { trigger: "", class_word: "" };
        askTexts();
        place.dispatchEvent(new CustomEvent("lt-words"));
    }

    async function offerFolders() {
        const answer = await asked("folders", {});
        if (!answer) return;
        place.folders = answer.folders;
        const list = part("folders");
        list.replaceChildren(...answer.folders.map((one) => make("option", { value: one.folder })));
        const box = part("folder");
        if (!box.value && answer.folders.length) box.value = answer.folders[0].folder;
    }

    // --- the gallery ------------------------------------------------------------------------------
    const badge = (tokens) => {
        if (tokens === null) return make("i", { className: "lt-tag", title: "The tokenizer is being loaded" }, "…");
        const chunk = LIMITS.find((limit) => tokens <= limit);
        const level = tokens > 225 ? "lt-error" : tokens > 75 ? "lt-warning" : "";
        const title = `${tokens} tokens: ${chunk ? `fits in ${chunk}` : "more than 225"}`;
        return make("i", { className: `lt-tag ${level}`, title }, String(tokens));
    };

    function drawGallery() {
        const from = shown.page * 48;
        const heading = `${whole(shown.found)} of ${whole(shown.total)}`;
        part("count").textContent = selected.size ? `${heading} · ${whole(selected.size)} selected` : heading;
        part("pager").replaceChildren(...pager(from));
        part("gallery").replaceChildren(...shown.pictures.map((one, place_) => figure(one, place_)));
    }

    function pager() {
        const turn = (label, name, to) => {
            const button = make("button", { type: "button", className: "lt-small", "aria-label": name, title: name }, label);
            button.disabled = to < 0 || to >= shown.pages;
            button.onclick = () => show(to);
            return button;
        };
        if (shown.pages < 2) return [];
        return [turn("«", "First page", shown.page ? 0 : -1), turn("‹", "Previous page", shown.page - 1),
            make("span", {}, `${whole(shown.page + 1)} / ${whole(shown.pages)}`), turn("›", "Next page", shown.page + 1),
            turn("»", "Last page", shown.page === shown.pages - 1 ? shown.pages : shown.pages - 1)];
    }

    function figure(one, position) {
        const button = make("button", { type: "button", className: "lt-thumb", title: `${one.name}\n${one.text}` },
            make("img", { src: lt.url(`thumbnail/${one.token}`), alt: one.text || one.name, loading: "lazy" }));
        button.onclick = () => edit(position);
        const tick = make("input", { type: "checkbox", checked: selected.has(one.number), title: "Select for edits of the selected", "aria-label": `Select ${one.name}` });
        tick.onchange = () => {
            if (tick.checked) selected.add(one.number);
            else selected.delete(one.number);
            drawGallery();
            previewSoon();
        };
        const made = make("figure", { className: one.number === edited ? "lt-chosen" : "" }, button, make("label", { className: "lt-pick lt-tick" }, tick, badge(one.tokens)),
            make("figcaption", { title: one.text }, one.text || make("i", { className: "lt-faint" }, "no caption")));
        return made;
    }

    // --- one caption ------------------------------------------------------------------------------
    const at = () => shown.pictures.findIndex((one) => one.number === edited);

    function edit(position) {
        const one = shown.pictures[position];
        if (!one) return;
        edited = one.number;
        const editor = part("editor");
        const area = make("textarea", { value: one.text, rows: 5, title: "Saved when you leave it. Alt with an arrow key: the next picture.", "aria-label": "Caption", spellcheck: false });
        area.onblur = () => save(one, area.value);
        area.onkeydown = (event) => {
            const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
            if (event.altKey && step) {
                event.preventDefault();
                area.blur();
                walk(step);
            }
        };
        const large = make("button", { type: "button", className: "lt-thumb", title: "Enlarge" }, make("img", { src: lt.url(`thumbnail/${one.token}`), alt: one.name }));
        large.onclick = () => lt.enlarge([[{ token: one.token, title: one.name, text: one.text }]], 0, 0);
        editor.replaceChildren(large, make("div", { className: "lt-line" },
            make("div", { className: "lt-bar-row" }, make("b", {}, one.name), make("span", { className: "lt-faint" }, "Tab completes a tag")), area));
        lt.completes(area, place);
        area.focus({ preventScroll: true });
        place.querySelectorAll(".lt-c-gallery figure").forEach((made, n) => made.classList.toggle("lt-chosen", n === position));
    }

    function walk(step) {
        const next = at() + step;
        if (shown.pictures[next]) edit(next);
        else if (step > 0 && shown.page + 1 < shown.pages) show(shown.page + 1).then(() => edit(0));
        else if (step < 0 && shown.page) show(shown.page - 1).then(() => edit(shown.pictures.length - 1));
    }

    async function save(one, text) {
        if (text.trim() === one.text) return;
        const answer = await asked("save", { number: one.number, text });
        if (!answer) return;
        one.text = text.trim();
        one.tokens = answer.tokens;
        tell(`${one.name} is saved.`);
        shown.undo = answer.undo;
        part("undo").disabled = !answer.undo;
        part("undo").textContent = `Undo (${answer.undo})`;
        const figures = place.querySelectorAll(".lt-c-gallery figure");
        const position = shown.pictures.indexOf(one);
        if (figures[position]) figures[position].replaceWith(figure(one, position));
    }

    // --- tags -------------------------------------------------------------------------------------
    function drawTags() {
        const most = shown.tags.length ? shown.tags[0][1] : 1;
        part("tags").replaceChildren(...shown.tags.map(([tag, count]) => {
            const button = make("button", { type: "button", className: "lt-hit", title: "Click: only captions with it. Shift: only without it. Alt: put it into the edit." },
                make("b", {}, tag), make("span", { className: "lt-bar" }, make("span", { style: `width:${(100 * count) / most}%` })), make("i", {}, whole(count)));
            button.onclick = (event) => {
                if (event.altKey) return putIntoEdit(tag);
                const box = event.shiftKey ? "none_of" : "all_of";
                const tags = filter[box].split(",").map((one) => one.trim()).filter(Boolean);
                filter[box] = (tags.includes(tag) ? tags.filter((one) => one !== tag) : [...tags, tag]).join(", ");
                part(`filter-${box}`).value = filter[box];
                return show(0);
            };
            return button;
        }));
    }

    // --- many captions ----------------------------------------------------------------------------
    const kind = () => place.edits.find((one) => one.name === part("edit").value);
    const texts = () => [...part("texts").querySelectorAll("input")].map((input) => input.value);
    /** Which captions are meant, for the server. */
    const scoped = (scope) => ({ scope, selected: [...selected], filter, page: shown ? shown.page : 0 });
    const order = () => ({ edit: kind().name, texts: texts(), ...scoped(part("scope").value) });

    function askTexts() {
        const words = place.words || {};
        const start = kind().name === "trigger first" ? [words.trigger || "", words.class_word || ""] : [];
        part("texts").replaceChildren(...kind().asks.map((label, n) => {
            const input = make("input", { type: "text", placeholder: label, title: kind().help, value: start[n] || "", "aria-label": label, spellcheck: false });
            input.addEventListener("input", previewSoon);
            if (kind().name !== "pattern" && kind().name !== "sort") lt.completes(input, place);
            return input;
        }));
        part("help").textContent = kind().help;
        previewSoon();
    }
    function putIntoEdit(tag) {
        const input = part("texts").querySelector("input");
        if (input) input.value = input.value.trim() && kind().name !== "replace" ? `${input.value.trim()}, ${tag}` : tag;
        previewSoon();
    }

    async function preview() {
        if (!shown) return;
        const isReady = texts().every((text, n) => n > 0 || text.trim() || kind().name === "sort");
        part("apply").disabled = true;
        if (!isReady) {
            part("preview").replaceChildren();
            return;
        }
        const answer = await lt.ask("captions-preview", order()).catch((problem) => ({ told: problem.message, touched: 0, examples: [] }));
        part("apply").disabled = !answer.touched;
        part("preview").replaceChildren(make("b", {}, answer.told), ...answer.examples.map((one) =>
            make("div", { className: "lt-c-example" }, make("del", {}, one.before || "no caption"), make("ins", {}, one.after))));
    }
    const previewSoon = later(preview);

    async function applyEdit() {
        const answer = await asked("apply", order());
        if (!answer) return;
        take(answer);
        tell(answer.told);
    }
    async function undo() {
        const answer = await asked("undo", { filter, page: shown ? shown.page : 0 });
        if (!answer) return;
        take(answer);
        tell(answer.told);
    }

    // --- advice and words -------------------------------------------------------------------------
    async function advise() {
        const answer = await asked("advice", { trigger: (place.words || {}).trigger || "" });
        if (!answer) return;
        const prune = answer.prune.map((one) => {
            const button = make("button", { type: "button", className: "lt-small", title: "Put it into the edit above; nothing is written yet" }, "Remove…");
            button.onclick = () => {
                part("edit").value = "remove";
                askTexts();
                putIntoEdit(one.tag);
            };
            return make("li", {}, make("p", {}, make("b", {}, one.tag), ` stands in ${Math.round(100 * one.share)} % of the captions with the trigger`), button);
        });
        const topics = answer.advice.map((one) => {
            const pick = make("button", { type: "button", className: "lt-small", title: "Select these captions, for an edit of the selected" }, "Select");
            pick.onclick = () => {
                selected.clear();
                one.numbers.forEach((number) => selected.add(number));
                part("scope").value = "selected";
                drawGallery();
                previewSoon();
            };
            const more = one.numbers.length - one.captions.length;
            const lines = one.captions.map((caption) => make("li", {}, make("p", {}, make("b", {}, caption.name), caption.detail ? ` ${caption.detail}` : "")));
            return make("details", { className: "lt-c-topic" },
                make("summary", {}, make("span", {}, make("b", {}, one.told), make("i", { className: "lt-faint" }, one.why)), pick),
                make("ul", { className: "lt-c-lines" }, ...lines), more > 0 ? make("p", { className: "lt-faint" }, `and ${whole(more)} more`) : null);
        });
        part("advice").replaceChildren(
            make("h4", {}, `Tags that steal from the trigger: ${answer.prune.length}`),
            make("p", { className: "lt-faint" }, "They are learnt instead of it. Take out what belongs to the concept; keep what prompts shall be able to change."), make("ul", { className: "lt-c-lines" }, ...prune),
            make("h4", {}, `What stands out in captions: ${answer.advice.length + answer.more}`), ...topics,
            answer.more ? make("p", { className: "lt-faint" }, `and ${whole(answer.more)} more`) : "");
    }

    async function measureWords() {
        const answer = await asked("words", { words: part("try").value });
        if (!answer) return;
        const lengths = answer.lengths.map((one) => make("div", { className: "lt-tile" }, make("b", {}, whole(one.captions)),
            make("span", {}, one.to > 1000 ? "captions above 225 tokens" : `captions of ${one.from} to ${one.to} tokens`)));
        const triggers = answer.triggers.map((one) => make("li", {}, make("p", {}, make("b", {}, one.word),
            ` is ${one.tokens.length} ${one.tokens.length === 1 ? "token" : "tokens"}: ${one.tokens.map((token) => `“${token.trim()}”`).join(" ")}`)));
        part("words").replaceChildren(
            make("div", { className: "lt-tiles" }, ...lengths),
            make("ul", { className: "lt-c-lines" }, ...triggers, ...answer.shared.map((told) => make("li", { className: "lt-bad" }, make("p", {}, told)))),
            make("p", { className: "lt-faint" }, "Rare words of one token, for new triggers:"),
            make("p", { className: "lt-c-rare" }, answer.rare.join("  ")));
    }

    // --- the place --------------------------------------------------------------------------------
    const line = (label, input, title) => {
        input.title = title;
        return make("label", { className: "lt-line lt-field", title }, make("span", {}, label), input);
    };
    const box = (name, placeholder = "") => make("input", { type: "text", className: `lt-c-${name}`, placeholder, spellcheck: false });
    const button = (label, name, title, work, isSmall = true) => {
        const made = make("button", { type: "button", className: `${isSmall ? "lt-small " : ""}lt-c-${name}`, title }, label);
        made.onclick = work;
        return made;
    };

    function filterBox(name, label, title, placeholder) {
        const input = box(`filter-${name}`, placeholder);
        input.addEventListener("input", () => {
            filter[name] = input.value;
            showSoon();
        });
        if (name.endsWith("_of")) lt.completes(input, place);
        return line(label, input, title);
    }

    function filters() {
        const untagged = make("input", { type: "checkbox" });
        untagged.onchange = () => {
            filter.untagged = untagged.checked;
            show(0);
        };
        const title = "Tags separated by commas; * stands for any letters.";
        return make("div", { className: "lt-card lt-c-filters" },
            make("h3", { className: "lt-heading" }, "Filter"),
            filterBox("all_of", "With all of", title, "red hair, solo"),
            filterBox("any_of", "With any of", title, "* hair"),
            filterBox("none_of", "Without", title, ""),
            filterBox("text", "Text or file name", "Looked for in captions and file names.", ""),
            make("div", { className: "lt-c-pair" },
                filterBox("fewest", "Tokens from", "By the tokenizer of the checkpoint; without begin and end.", "0"),
                filterBox("most", "to", "75, 150 and 225 are one, two and three chunks.", "75")),
            make("label", { className: "lt-field lt-tick", title: "Only pictures without a caption" }, untagged, make("span", {}, "Untagged only")),
            make("h3", { className: "lt-heading" }, "Tags", make("span", {}, "in what is shown")),
            make("div", { className: "lt-c-tags" }), lt.tagListBox(place));
    }

    const scopes = (className, title, what) => make("select", { className, title, "aria-label": title },
        ...[["all", `all ${what}`], ["filtered", "the filtered"], ["selected", "the selected"]].map(([value, label]) => make("option", { value }, label)));
    lt.captionScopes = scopes;

    function bulk() {
        const edit_ = make("select", { className: "lt-c-edit", title: "What to do", "aria-label": "Edit" },
            ...place.edits.map((one) => make("option", { value: one.name, title: one.help }, one.label)));
        edit_.onchange = askTexts;
        const scope = scopes("lt-c-scope", "Which captions the edit is for", "captions");
        scope.onchange = previewSoon;
        return make("div", { className: "lt-card" },
            make("h3", { className: "lt-heading" }, "Edit many", make("span", { className: "lt-c-help" })),
            make("div", { className: "lt-tool lt-c-order" }, edit_, make("div", { className: "lt-c-texts" }), scope,
                button("Apply", "apply", "Write the changed captions; a backup is kept and Undo takes it back.", applyEdit),
                button("Undo", "undo", "Put back what the last edit changed.", undo)),
            make("div", { className: "lt-c-preview" }));
    }

    function folded(title, name, start, ...before) {
        const made = make("details", { className: "lt-card lt-skipped" }, make("summary", {}, title), ...before, make("div", { className: `lt-c-${name}` }));
        made.ontoggle = () => made.open && shown && start();
        return made;
    }

    function build() {
        place.edits = JSON.parse(place.dataset.edits);
        const folder = make("input", { type: "text", className: "lt-c-folder", placeholder: "/path/to/pictures" });
        folder.setAttribute("list", "lora_train_caption_folders");
        folder.onkeydown = (event) => event.key === "Enter" && open();
        const tryBox = box("try", "words to try, separated by commas");
        tryBox.onchange = measureWords;
        const body = make("div", { className: "lt-captions" },
            make("div", { className: "lt-card lt-c-top" },
                make("div", { className: "lt-tool lt-c-order" }, folder, make("datalist", { id: "lora_train_caption_folders", className: "lt-c-folders" }),
                    button("Open", "open", "Read the captions of this folder and its N_words sub-folders.", open)),
                make("p", { className: "lt-c-told lt-faint", role: "status" }, "The folders of the Dataset panel are offered here.")),
            make("div", { className: "lt-c-columns" }, filters(),
                make("div", {}, bulk(), lt.taggingCard({ place, shown: () => shown, order: scoped, refresh: () => show() }),
                    make("div", { className: "lt-card lt-c-editor-card" }, make("div", { className: "lt-c-editor" }, make("p", { className: "lt-faint" }, "Click a picture to edit its caption."))),
                    make("div", { className: "lt-card" },
                        make("div", { className: "lt-bar-row" }, make("h3", { className: "lt-heading" }, "Pictures", make("span", { className: "lt-c-count" })),
                            button("Select page", "page", "Select every picture of this page", () => {
                                shown.pictures.forEach((one) => selected.add(one.number));
                                drawGallery();
                                previewSoon();
                            }),
                            button("Select none", "none", "Forget the selection", () => {
                                selected.clear();
                                drawGallery();
                                previewSoon();
                            }),
                            make("nav", { className: "lt-pager lt-c-pager" })),
                        make("div", { className: "lt-gallery lt-c-gallery" })),
                    folded("Advice: tags that steal from the trigger, contradictions, lengths", "advice", advise),
                    folded("Tokens: lengths, triggers, rare words", "words", measureWords, make("div", { className: "lt-tool" }, tryBox)))));
        body.addEventListener("input", (event) => event.stopPropagation()); // nothing here belongs to the form
        place.replaceChildren(body);
        place.dataset.ltOwn = "yes";
        askTexts();
    }

    lt.drawCaptions = (given) => {
        place = given;
        if (place.firstChild) {
            if (place.offsetParent !== null && !place.isOffered) {
                place.isOffered = true;
                offerFolders();
            }
            if (place.offsetParent === null) place.isOffered = false;
            place.classList.toggle("lt-c-open", Boolean(shown));
            return;
        }
        build();
    };
})();
