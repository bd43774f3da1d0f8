/* Edits of many captions: what they ask for, how many they would touch, doing and undoing them. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    /** The choice of which captions or images something is for. */
    lt.captionScopes = (className, title, what) => make("select", { className, title, "aria-label": title },
        ...[["all", `all ${what}`], ["filtered", "the filtered"], ["selected", "the selected"]].map(([value, label]) => make("option", { value }, label)));

    lt.captionEdits = (panel) => {
        const kind = () => panel.place.edits.find((one) => one.name === panel.part("edit").value);
        const texts = () => [...panel.part("texts").querySelectorAll("input")].map((input) => input.value);
        const order = () => ({ edit: kind().name, texts: texts(), ...panel.scoped(panel.part("scope").value) });

        function askTexts() {
            const words = panel.place.words || {};
            const start = kind().name === "trigger first" ? [words.trigger || "", words.class_word || ""] : [];
            panel.part("texts").replaceChildren(...kind().asks.map((label, n) => {
                const input = make("input", { type: "text", placeholder: label, title: kind().help, value: start[n] || "", "aria-label": label, spellcheck: false });
                input.addEventListener("input", changed);
                if (kind().name !== "pattern" && kind().name !== "sort") lt.completes(input, panel.place);
                return input;
            }));
            panel.part("help").textContent = kind().help;
            changed();
        }
        function putIntoEdit(tag) {
            const input = panel.part("texts").querySelector("input");
            if (input) input.value = input.value.trim() && kind().name !== "replace" ? `${input.value.trim()}, ${tag}` : tag;
            changed();
        }

        async function preview() {
            if (!panel.shown) return;
            const isReady = texts().every((text, n) => n > 0 || text.trim() || kind().name === "sort");
            panel.part("apply").disabled = true;
            if (!isReady) {
                panel.part("preview").replaceChildren();
                return;
            }
            const answer = await lt.ask("captions-preview", order()).catch((problem) => ({ told: problem.message, touched: 0, examples: [] }));
            panel.part("apply").disabled = !answer.touched;
            panel.part("preview").replaceChildren(make("b", {}, answer.told), ...answer.examples.map((one) =>
                make("div", { className: "lt-c-example" }, make("del", {}, one.before || "no caption"), make("ins", {}, one.after))));
        }
        const changed = panel.later(preview);

        async function applyEdit() {
            const answer = await panel.asked("apply", order());
            if (!answer) return;
            panel.take(answer);
            panel.tell(answer.told);
        }
        async function undo() {
            const answer = await panel.asked("undo", { filter: panel.filter, page: panel.shown ? panel.shown.page : 0 });
            if (!answer) return;
            panel.take(answer);
            panel.tell(answer.told);
        }

        function drawUndo() {
            const number = panel.shown.undo;
            panel.part("undo").disabled = !number;
            panel.part("undo").textContent = number ? `Undo (${number})` : "Undo";
        }

        function bulk() {
            const edit_ = make("select", { className: "lt-c-edit", title: "What to do", "aria-label": "Edit" },
                ...panel.place.edits.map((one) => make("option", { value: one.name, title: one.help }, one.label)));
            edit_.onchange = askTexts;
            const scope = lt.captionScopes("lt-c-scope", "Which captions the edit is for", "captions");
            scope.onchange = changed;
            return make("div", { className: "lt-card" },
                make("h3", { className: "lt-heading" }, "Edit many", make("span", { className: "lt-c-help" })),
                make("div", { className: "lt-tool lt-c-order" }, edit_, make("div", { className: "lt-c-texts" }), scope,
                    lt.captionButton("Apply", "apply", "Write the changed captions; a backup is kept and Undo takes it back.", applyEdit),
                    lt.captionButton("Undo", "undo", "Put back what the last edit changed.", undo)),
                make("div", { className: "lt-c-preview" }));
        }

        return { card: bulk, start: askTexts, put: putIntoEdit, changed, drawUndo };
    };
})();
