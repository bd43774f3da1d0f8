/* What is said about captions when it is asked for: advice by topic, and what the text encoder makes of the words. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    lt.captionAdvice = (panel) => {
        async function advise() {
            const answer = await panel.asked("advice", { trigger: (panel.place.words || {}).trigger || "" });
            if (!answer) return;
            const prune = answer.prune.map((one) => {
                const button = make("button", { type: "button", className: "lt-small", title: "Put it into the edit above; nothing is written yet" }, "Remove…");
                button.onclick = () => {
                    panel.part("edit").value = "remove";
                    panel.edits.start();
                    panel.edits.put(one.tag);
                };
                return make("li", {}, make("p", {}, make("b", {}, one.tag), ` stands in ${Math.round(100 * one.share)} % of the captions with the trigger`), button);
            });
            const topics = answer.advice.map((one) => {
                const pick = make("button", { type: "button", className: "lt-small", title: "Select these captions, for an edit of the selected" }, "Select");
                pick.onclick = () => {
                    panel.selected.clear();
                    one.numbers.forEach((number) => panel.selected.add(number));
                    panel.part("scope").value = "selected";
                    panel.gallery.draw();
                    panel.edits.changed();
                };
                const more = one.numbers.length - one.captions.length;
                const lines = one.captions.map((caption) => make("li", {}, make("p", {}, make("b", {}, caption.name), caption.detail ? ` ${caption.detail}` : "")));
                return make("details", { className: "lt-c-topic" },
                    make("summary", { title: "Unfold the captions that this is about" }, make("span", {}, make("b", {}, one.told), make("i", { className: "lt-faint" }, one.why)), pick),
                    make("ul", { className: "lt-c-lines" }, ...lines), more > 0 ? make("p", { className: "lt-faint" }, `and ${lt.whole(more)} more`) : null);
            });
            panel.part("advice").replaceChildren(
                make("h4", {}, `Tags that steal from the trigger: ${answer.prune.length}`),
                make("p", { className: "lt-faint" }, "They are learnt instead of it. Take out what belongs to the concept; keep what prompts shall be able to change."), make("ul", { className: "lt-c-lines" }, ...prune),
                make("h4", {}, `What stands out in captions: ${answer.advice.length + answer.more}`), ...topics,
                answer.more ? make("p", { className: "lt-faint" }, `and ${lt.whole(answer.more)} more`) : "");
        }

        async function measureWords() {
            const answer = await panel.asked("words", { words: panel.part("try").value });
            if (!answer) return;
            const lengths = answer.lengths.map((one) => make("div", { className: "lt-tile" }, make("b", {}, lt.whole(one.captions)),
                make("span", {}, one.to > 1000 ? "captions above 225 tokens" : `captions of ${one.from} to ${one.to} tokens`)));
            const triggers = answer.triggers.map((one) => make("li", {}, make("p", {}, make("b", {}, one.word),
                ` is ${one.tokens.length} ${one.tokens.length === 1 ? "token" : "tokens"}: ${one.tokens.map((token) => `“${token.trim()}”`).join(" ")}`)));
            panel.part("words").replaceChildren(
                make("div", { className: "lt-tiles" }, ...lengths),
                make("ul", { className: "lt-c-lines" }, ...triggers, ...answer.shared.map((told) => make("li", { className: "lt-bad" }, make("p", {}, told)))),
                make("p", { className: "lt-faint" }, "Rare words of one token, for new triggers:"),
                make("p", { className: "lt-c-rare" }, answer.rare.join("  ")));
        }

        return { advise, measureWords };
    };
})();
