/* Bulk edits of captions: inputs, preview, apply and undo. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    /** A choice of which captions or images to use. */
    lt.captionScopes = (className, title, what) => make("select", { className, title, "aria-label": title },
        ...[["all", `all ${what}`], ["filtered", `filtered ${what}`], ["selected", `selected ${what}`]].map(([value, label]) => make("option", { value }, label)));

    lt.captionEdits = (panel) => {
        const kind = () => panel.container.edits.find((one) => one.name === panel.part("edit").value);
        const texts = () => [...panel.part("texts").querySelectorAll("input")].map((input) => input.value);
        const request = () => ({ edit: kind().name, texts: texts(), ...panel.scoped(panel.part("scope").value) });

        function drawInputs() {
            const words = panel.container.words || {};
            const start = kind().name === "trigger first" ? [words.trigger || "", words.class_word || ""] : [];
            panel.part("texts").replaceChildren(...kind().inputs.map((label, n) => {
                const input = make("input", { type: "text", placeholder: label, title: kind().help, value: start[n] || "", "aria-label": label, spellcheck: false });
                input.addEventListener("input", changed);
                if (kind().name !== "pattern" && kind().name !== "sort") lt.addCompletion(input, panel.container);
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

        let seen = ""; // what the preview showed; another edit is not applied
        async function preview() {
            if (!panel.shown) return;
            const asked = request();
            const isReady = texts().every((text, n) => n > 0 || text.trim() || kind().name === "sort");
            panel.part("apply").disabled = true;
            if (!isReady) {
                panel.part("preview").replaceChildren();
                return;
            }
            const answer = await lt.request("captions-preview", asked).catch((problem) => ({ message: problem.message, number: 0, examples: [] }));
            if (JSON.stringify(asked) !== JSON.stringify(request())) return; // a later preview follows
            seen = answer.seen || "";
            panel.part("apply").disabled = !answer.number;
            panel.part("preview").replaceChildren(make("b", {}, answer.message), ...answer.examples.map((one) =>
                make("div", { className: "lt-c-example" }, make("del", {}, one.before || "no caption"), make("ins", {}, one.after))));
        }
        const previewSoon = panel.later(preview);
        function changed() {
            panel.part("apply").disabled = true; // until the preview shows what it would do
            previewSoon();
        }

        async function applyEdit() {
            const asked = request();
            if (await panel.editor.settle()) await preview(); // a caption was just saved by leaving its box
            await finish(await panel.request("apply", { ...asked, seen }));
        }
        async function undo() {
            if (!panel.shown) return;
            await panel.editor.settle();
            const { folder, record, page } = panel.shown;
            await finish(await panel.request("undo", { folder, record, filter: panel.filter, page }));
        }
        /** Show the captions after an edit, also after one that was refused because they had changed. */
        async function finish(answer) {
            if (!answer) return panel.show();
            panel.handle(answer);
            return panel.notify(answer.message);
        }
        function close() {
            panel.part("apply").disabled = true;
            panel.part("undo").disabled = true;
            panel.part("preview").replaceChildren();
        }

        function drawUndo() {
            const number = panel.shown.undo;
            panel.part("undo").disabled = !number;
            panel.part("undo").textContent = number ? `Undo (${number})` : "Undo";
        }

        function bulk() {
            const edit_ = make("select", { className: "lt-c-edit", title: "Kind of edit", "aria-label": "Edit" },
                ...panel.container.edits.map((one) => make("option", { value: one.name, title: one.help }, one.label)));
            edit_.onchange = drawInputs;
            const scope = lt.captionScopes("lt-c-scope", "Captions to edit", "captions");
            scope.onchange = changed;
            return make("div", { className: "lt-card" },
                make("h3", { className: "lt-heading" }, "Bulk edit", make("span", { className: "lt-c-help" })),
                make("div", { className: "lt-tool lt-c-row" }, edit_, make("div", { className: "lt-c-texts" }), scope,
                    lt.captionButton("Apply", "apply", "Write the changed captions. Undo restores them.", applyEdit),
                    lt.captionButton("Undo", "undo", "Undo the last edit.", undo)),
                make("div", { className: "lt-c-preview" }));
        }

        return { card: bulk, start: drawInputs, put: putIntoEdit, changed, drawUndo, close };
    };
})();
