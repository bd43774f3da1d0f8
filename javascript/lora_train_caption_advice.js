/* Advice on captions by topic, and the tokens of captions and trigger words. Both are computed on demand. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    lt.captionAdvice = (panel) => {
        async function advise() {
            const answer = await panel.request("advice", { trigger: (panel.container.words || {}).trigger || "", list: lt.tagListPath() });
            if (!answer) return;
            const prune = answer.prune.map((one) => {
                const button = make("button", { type: "button", className: "lt-small", title: "Enter it in the bulk edit above; nothing is written yet" }, "Remove…");
                button.onclick = () => {
                    panel.part("edit").value = "remove";
                    panel.edits.start();
                    panel.edits.put(one.tag);
                };
                return make("li", {}, make("p", {}, one.text), button);
            });
            const topics = answer.advice.map((one) => {
                const pick = make("button", { type: "button", className: "lt-small", title: "Select these captions for a bulk edit" }, "Select");
                pick.onclick = () => {
                    panel.selected.clear();
                    one.images.forEach((image) => panel.selected.add(image));
                    panel.part("scope").value = "selected";
                    panel.gallery.draw();
                    panel.edits.changed();
                };
                const more = one.images.length - one.captions.length;
                const lines = one.captions.map((caption) => make("li", {}, make("p", {}, make("b", {}, caption.name), caption.detail ? ` ${caption.detail}` : "")));
                return make("details", { className: "lt-c-topic" },
                    make("summary", { title: "Show these captions" }, make("span", {}, make("b", {}, one.title), make("i", { className: "lt-faint" }, one.why)), pick),
                    make("ul", { className: "lt-c-lines" }, ...lines), more > 0 ? make("p", { className: "lt-faint" }, `and ${lt.whole(more)} more`) : null);
            });
            panel.part("advice").replaceChildren(
                make("h4", {}, `Tags that compete with the trigger word: ${answer.prune.length}`),
                make("p", { className: "lt-faint" }, "Tags in nearly all captions may be learnt instead of the trigger word. If a tag is only frequent, leaving it out means something too."), make("ul", { className: "lt-c-lines" }, ...prune),
                make("h4", {}, `Captions to review: ${answer.advice.length + answer.more}`), ...topics,
                answer.more ? make("p", { className: "lt-faint" }, `and ${lt.whole(answer.more)} more`) : "");
        }

        /** Like the filters, this box works while you type, and keeps its text when the panel is rebuilt. */
        function wordsBox() {
            const title = "Candidates for trigger words, separated by commas: shows their tokens, and which tokens two of them share";
            const input = lt.captionBox("try", "zkw, ohwx");
            input.value = panel.words;
            input.title = title;
            const measureSoon = panel.later(measureWords);
            input.addEventListener("input", () => {
                panel.words = input.value;
                measureSoon();
            });
            return make("label", { className: "lt-line lt-field", title }, make("span", {}, "Words to try"), input);
        }

        async function measureWords() {
            if (!panel.shown) return;
            const [words, folder] = [panel.words, panel.folder];
            const answer = await panel.request("words", { words });
            if (!answer || words !== panel.words || folder !== panel.folder) return; // changed in the meantime
            const lengths = answer.lengths.map((one) => make("div", { className: "lt-tile" }, make("b", {}, lt.whole(one.captions)),
                make("span", {}, one.to === null ? `captions over ${lt.count(one.from - 1, "token")}` : `captions of ${one.from} to ${lt.count(one.to, "token")}`)));
            const triggers = answer.triggers.map((one) => make("li", {}, make("p", {}, make("b", {}, one.word),
                ` is ${lt.count(one.tokens.length, "token")}: ${one.tokens.map((token) => `“${token.trim()}”`).join(" ")}`)));
            panel.part("words").replaceChildren(
                make("div", { className: "lt-tiles" }, ...lengths),
                make("ul", { className: "lt-c-lines" }, ...triggers, ...answer.shared.map((warning) => make("li", { className: "lt-bad" }, make("p", {}, warning)))),
                make("p", { className: "lt-faint" }, answer.note || "Rare single-token words, for new trigger words:"),
                make("p", { className: "lt-c-rare" }, answer.rare.join("  ")));
        }

        return { advise, measureWords, wordsBox };
    };
})();
