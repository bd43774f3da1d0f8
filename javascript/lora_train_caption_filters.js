/* The left column of the Captions panel: the filter, and the tags of the matching captions with their counts. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    lt.captionFilters = (panel) => {
        const line = (label, input, title) => {
            input.title = title;
            return make("label", { className: "lt-line lt-field", title }, make("span", {}, label), input);
        };

        function filterBox(name, label, title, placeholder) {
            const input = lt.captionBox(`filter-${name}`, placeholder);
            input.value = panel.filter[name];
            input.addEventListener("input", () => {
                panel.filter[name] = input.value;
                panel.showSoon();
            });
            if (name.endsWith("_of")) lt.addCompletion(input, panel.container);
            return line(label, input, title);
        }

        function filters() {
            const untagged = make("input", { type: "checkbox", checked: panel.filter.untagged });
            untagged.onchange = () => {
                panel.filter.untagged = untagged.checked;
                panel.show(0);
            };
            const title = "Tags separated by commas; * matches anything.";
            return make("div", { className: "lt-card lt-c-filters" },
                make("h3", { className: "lt-heading" }, "Filter"),
                filterBox("all_of", "With all of", title, "red hair, solo"),
                filterBox("any_of", "With any of", title, "* hair"),
                filterBox("none_of", "Without", title, ""),
                filterBox("text", "Text or file name", "Searches captions and file names.", ""),
                make("div", { className: "lt-c-pair" },
                    filterBox("fewest", "Min tokens", "Counted by the tokenizer of the checkpoint, without begin and end token.", "0"),
                    filterBox("most", "Max tokens", "Captions that are no longer than this.", "75")),
                make("label", { className: "lt-field lt-checkbox", title: "Only images without a caption" }, untagged, make("span", {}, "Without caption only")),
                make("h3", { className: "lt-heading" }, "Tags", make("span", {}, "in matching captions")),
                make("div", { className: "lt-c-tags" }), lt.tagListBox(panel.container));
        }

        function drawTags() {
            const most = panel.shown.tags.length ? panel.shown.tags[0][1] : 1;
            panel.part("tags").replaceChildren(...panel.shown.tags.map(([tag, count]) => {
                const button = make("button", { type: "button", className: "lt-hit", title: "Click: only captions with this tag. Shift-click: only captions without it. Alt-click: use it in the bulk edit." },
                    make("b", {}, tag), make("span", { className: "lt-bar" }, make("span", { style: `width:${(100 * count) / most}%` })), make("i", {}, lt.whole(count)));
                button.onclick = (event) => {
                    if (event.altKey) return panel.edits.put(tag);
                    const box = event.shiftKey ? "none_of" : "all_of";
                    const tags = panel.filter[box].split(lt.COMMAS_AND_LINES).map((one) => one.trim()).filter(Boolean);
                    panel.filter[box] = (tags.includes(tag) ? tags.filter((one) => one !== tag) : [...tags, tag]).join(", ");
                    panel.part(`filter-${box}`).value = panel.filter[box];
                    return panel.show(0);
                };
                return button;
            }));
        }

        return { card: filters, draw: drawTags };
    };
})();
