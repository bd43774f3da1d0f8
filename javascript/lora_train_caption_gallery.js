/* The images of the Captions panel: one page with token counts, and the selection. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    lt.captionGallery = (panel) => {
        const badge = (tokens) => {
            if (tokens === null) return make("i", { className: "lt-tag", title: "Loading the tokenizer" }, "…");
            if (tokens < 0) return make("i", { className: "lt-tag", title: panel.shown.note }, "?");
            const limits = panel.shown.limits; // of one, two and three chunks of CLIP, or the model's own
            const chunk = limits.find((limit) => tokens <= limit);
            const level = !chunk ? "lt-error" : chunk > limits[0] ? "lt-warning" : "";
            const title = `${lt.count(tokens, "token")}: ${chunk ? `fits in ${chunk}` : `more than ${limits.at(-1)}`}`;
            return make("i", { className: `lt-tag ${level}`, title }, String(tokens));
        };

        function drawGallery() {
            const heading = `${lt.whole(panel.shown.found)} of ${lt.whole(panel.shown.total)}`;
            panel.part("count").textContent = panel.selected.size ? `${heading} · ${lt.whole(panel.selected.size)} selected` : heading;
            panel.part("pager").replaceChildren(...pager());
            panel.part("gallery").replaceChildren(...panel.shown.images.map(figure));
            panel.editor.follow();
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
            const button = make("button", { type: "button", className: "lt-thumb", title: `${one.image}\n${one.text}` },
                make("img", { src: lt.url(`thumbnail/${one.token}`), alt: one.text || one.name, loading: "lazy" }));
            button.onclick = () => panel.editor.edit(position);
            const tick = make("input", { type: "checkbox", checked: panel.selected.has(one.image), title: "Select for bulk edits", "aria-label": `Select ${one.name}` });
            tick.onchange = () => {
                if (tick.checked) panel.selected.add(one.image);
                else panel.selected.delete(one.image);
                drawGallery();
                panel.edits.changed();
            };
            const made = make("figure", { className: one.image === panel.edited ? "lt-chosen" : "" }, button, make("label", { className: "lt-pick lt-checkbox" }, tick, badge(one.tokens)),
                make("figcaption", { title: one.text }, one.text || make("i", { className: "lt-faint" }, "no caption")));
            return made;
        }

        return { draw: drawGallery };
    };
})();
