/* The images of the Captions panel: one page with token counts, the selection, and the editor of a caption. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const LIMITS = [75, 150, 225];

    lt.captionGallery = (panel) => {
        const badge = (tokens) => {
            if (tokens === null) return make("i", { className: "lt-tag", title: "Loading the tokenizer" }, "…");
            const chunk = LIMITS.find((limit) => tokens <= limit);
            const level = tokens > 225 ? "lt-error" : tokens > 75 ? "lt-warning" : "";
            const title = `${tokens} tokens: ${chunk ? `fits in ${chunk}` : "more than 225"}`;
            return make("i", { className: `lt-tag ${level}`, title }, String(tokens));
        };

        function drawGallery() {
            const heading = `${lt.whole(panel.shown.found)} of ${lt.whole(panel.shown.total)}`;
            panel.part("count").textContent = panel.selected.size ? `${heading} · ${lt.whole(panel.selected.size)} selected` : heading;
            panel.part("pager").replaceChildren(...pager());
            panel.part("gallery").replaceChildren(...panel.shown.images.map(figure));
            followEdits();
        }

        function pager() {
            const turn = (label, name, to) => {
                const button = make("button", { type: "button", className: "lt-small", "aria-label": name, title: name }, label);
                button.disabled = to < 0 || to >= panel.shown.pages;
                button.onclick = () => panel.show(to);
                return button;
            };
            if (panel.shown.pages < 2) return [];
            return [turn("«", "First page", panel.shown.page ? 0 : -1), turn("‹", "Previous page", panel.shown.page - 1),
                make("span", {}, `${lt.whole(panel.shown.page + 1)} / ${lt.whole(panel.shown.pages)}`), turn("›", "Next page", panel.shown.page + 1),
                turn("»", "Last page", panel.shown.page === panel.shown.pages - 1 ? panel.shown.pages : panel.shown.pages - 1)];
        }

        function figure(one, position) {
            const button = make("button", { type: "button", className: "lt-thumb", title: `${one.name}\n${one.text}` },
                make("img", { src: lt.url(`thumbnail/${one.token}`), alt: one.text || one.name, loading: "lazy" }));
            button.onclick = () => edit(position);
            const tick = make("input", { type: "checkbox", checked: panel.selected.has(one.number), title: "Select for bulk edits", "aria-label": `Select ${one.name}` });
            tick.onchange = () => {
                if (tick.checked) panel.selected.add(one.number);
                else panel.selected.delete(one.number);
                drawGallery();
                panel.edits.changed();
            };
            const made = make("figure", { className: one.number === panel.edited ? "lt-chosen" : "" }, button, make("label", { className: "lt-pick lt-checkbox" }, tick, badge(one.tokens)),
                make("figcaption", { title: one.text }, one.text || make("i", { className: "lt-faint" }, "no caption")));
            return made;
        }

        // --- one caption ------------------------------------------------------------------------------
        const at = () => panel.shown.images.findIndex((one) => one.number === panel.edited);

        const emptyEditor = () => make("p", { className: "lt-faint" }, "Click an image to edit its caption.");

        /** Update the editor: bulk edits, Undo and taggers change the caption too. */
        function followEdits() {
            const area = panel.part("editor").querySelector("textarea");
            if (!area || area === document.activeElement) return;
            const position = at();
            if (position < 0) panel.part("editor").replaceChildren(emptyEditor());
            else if (area.value !== panel.shown.images[position].text) edit(position, false);
        }

        function edit(position, isFocused = true) {
            const one = panel.shown.images[position];
            if (!one) return;
            panel.edited = one.number;
            const editor = panel.part("editor");
            const area = make("textarea", { value: one.text, rows: 5, title: "Saved when you leave the box. Alt + arrow key: previous or next image.", "aria-label": "Caption", spellcheck: false });
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
            lt.addCompletion(area, panel.container);
            if (isFocused) area.focus({ preventScroll: true });
            panel.container.querySelectorAll(".lt-c-gallery figure").forEach((made, n) => made.classList.toggle("lt-chosen", n === position));
        }

        function walk(step) {
            const next = at() + step;
            if (panel.shown.images[next]) edit(next);
            else if (step > 0 && panel.shown.page + 1 < panel.shown.pages) panel.show(panel.shown.page + 1).then(() => edit(0));
            else if (step < 0 && panel.shown.page) panel.show(panel.shown.page - 1).then(() => edit(panel.shown.images.length - 1));
        }

        async function save(one, text) {
            if (text.trim() === one.text) return;
            const answer = await panel.request("save", { number: one.number, text });
            if (!answer) return;
            one.text = text.trim();
            one.tokens = answer.tokens;
            panel.notify(`${one.name} saved.`);
            panel.shown.undo = answer.undo;
            panel.edits.drawUndo();
            const figures = panel.container.querySelectorAll(".lt-c-gallery figure");
            const position = panel.shown.images.indexOf(one);
            if (figures[position]) figures[position].replaceWith(figure(one, position));
        }

        return { draw: drawGallery, emptyEditor };
    };
})();
