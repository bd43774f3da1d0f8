/* Images by loss: the training images of a run, those that stand out most first, with the reason and what to do. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const small = (...all) => lt.smallButton(...all);
    const share = (value) => {
        const percent = Math.round(100 * value);
        return `${percent > 0 ? "+" : percent < 0 ? "−" : "±"}${Math.abs(percent)}%`;
    };

    /** The folded section of a past run. */
    lt.imageLosses = (run) => lt.measuredSection(run, {
        title: "Images by loss",
        help: "Show the training images, those whose loss stands out first",
        className: "lt-losses",
        actions: "image-losses",
        noun: "image",
        count: ({ images, total, standing_out: out }) => ({ items: images, total, out }),
        row,
        measure: ["Measure every image", "Measures the loss of every training image with the newest LoRA file of this run, and without it. Nothing is trained."],
        stop: "Stop measuring; nothing is kept",
    });

    // --- one image --------------------------------------------------------------------------------
    function thumb(one, name) {
        if (!one.token) return make("span", { className: "lt-measured-gone", title: `${one.path} is gone` }, "gone");
        const button = make("button", { type: "button", className: "lt-thumb", title: "Enlarge" }, make("img", { src: lt.url(`thumbnail/${one.token}`), alt: name, loading: "lazy" }));
        button.onclick = () => lt.enlarge([[{ token: one.token, title: name, text: one.caption || "", hasHeatMaps: true }]], 0, 0);
        return button;
    }

    function row(section, one) {
        const name = lt.fileName(one.path);
        const number = (value) => value.toFixed(value < 0.1 ? 4 : 3);
        const facts = make("p", { className: "lt-measured-facts", title: `Expected ${number(one.expected)}. Without its caption ${number(one.uncaptioned)}, without LoRA and caption ${number(one.untrained)}.` },
            "loss ", make("b", {}, number(one.loss)), " · excess ", make("b", {}, share(one.excess)));
        const near = make("div", { className: "lt-measured-near", hidden: true });
        const fix = small("Fix the caption", "Open this image in the Captions panel", () => lt.editCaption(one.folder, name));
        fix.disabled = !one.token;
        const item = make("li", { className: one.stands_out ? "lt-measured-out" : "" }, thumb(one, name),
            make("div", {}, make("div", { className: "lt-bar-row" }, make("b", {}, name), facts),
                make("p", { className: "lt-measured-caption" }, one.caption || make("i", { className: "lt-faint" }, "no caption")),
                make("p", { className: "lt-measured-why" }, one.sentence),
                make("div", { className: "lt-toolbar" },
                    small("Leave out", "Add this image to “Leave out images” of the settings. The file stays.", () => lt.applyChange("image-losses-leave-out", { run: section.run, path: one.path })),
                    fix,
                    small("Look at its neighbours", "Show the images of this run that are most like it", () => showNeighbours(near, one, name))),
                near));
        return item;
    }

    function showNeighbours(near, one, name) {
        near.hidden = !near.hidden;
        if (near.firstChild) return;
        const percent = (value) => `${(100 * value).toFixed(0)}% alike`;
        near.append(...(one.nearest.length ? one.nearest.map((other) => {
            const title = lt.fileName(other.path);
            const figure = make("figure", {}, thumb({ ...other, caption: "" }, title), make("figcaption", {}, make("b", {}, title), make("span", {}, percent(other.likeness))));
            const button = figure.querySelector("button");
            // Both in one table, so that the view can compare them.
            if (button && one.token) button.onclick = () => lt.enlarge([[{ token: one.token, title: name, text: one.caption, hasHeatMaps: true }], [{ token: other.token, title, text: percent(other.likeness), hasHeatMaps: true }]], 1, 0);
            return figure;
        }) : [make("p", { className: "lt-faint" }, "The run has no other image.")]));
    }
})();
