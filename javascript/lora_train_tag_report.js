/* The report on a run's tags: which were learnt, which are ignored, which steal from the trigger or pull others along. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const small = (...all) => lt.smallButton(...all);

    /** The folded section of a past run. */
    lt.tagReport = (run) => lt.measuredSection(run, {
        title: "Tags",
        help: "Show what each tag of the captions became: learnt, ignored, or in the way",
        className: "lt-tags",
        actions: "tags",
        noun: "tag",
        count: ({ tags }) => ({ items: tags, total: tags.length, out: tags.filter((one) => one.stands_out).length }),
        row,
        measure: ["Measure the tags", "Draws each trigger with and without every tag, with the newest LoRA file of this run, and compares the images. Nothing is trained."],
        stop: "Stop measuring; the images are kept, so that it can continue",
    });

    // --- one tag ----------------------------------------------------------------------------------
    function row(section, one) {
        const images = make("div", { className: "lt-tags-images", hidden: true });
        const look = small("With and without", "Show the trigger alone and with this tag, drawn with the same seeds", () => showImages(section, one, images).catch(lt.notify));
        const measured = one.having !== null;
        const leave = small("Train without it…", "Train this run again without this tag, and compare both", () => {
            const before = section.parentElement.querySelector(".lt-sweep");
            if (before) before.remove();
            section.before(lt.repeatForm(section.run, one.tag));
        });
        return make("li", { className: one.stands_out ? "lt-measured-out" : "" },
            make("div", {}, make("div", { className: "lt-bar-row" }, make("b", {}, one.tag), make("span", { className: "lt-faint" }, `${lt.whole(one.images)} of ${lt.count(one.total, "caption")}${one.trigger ? ` of ${one.trigger}` : ""}`)),
                make("p", { className: "lt-measured-why" }, one.sentence),
                ...(one.advice ? [make("p", { className: "lt-measured-caption" }, one.advice)] : []),
                make("div", { className: "lt-toolbar" }, measured ? look : small("Draw it", "Draw and measure this tag too", () => lt.startMeasuring(section, { tag: one.tag })), leave),
                images));
    }

    async function showImages(section, one, place) {
        place.hidden = !place.hidden;
        if (place.firstChild) return;
        const { rows } = await lt.request("tags-images", { run: section.run, prompt: one.prompt });
        const table = rows.map((row) => row.images.map((token) => ({ token, title: row.prompt || "empty prompt", text: row.prompt, hasHeatMaps: true })));
        if (table.some((row) => !row.length)) {
            place.append(make("p", { className: "lt-faint" }, "These images are gone. Measure again."));
            return;
        }
        place.append(...table.map((row, y) => make("figure", {}, make("figcaption", {}, rows[y].prompt || "empty prompt"),
            make("div", {}, ...row.map((cell, x) => {
                const button = make("button", { type: "button", className: "lt-thumb", title: "Enlarge" }, make("img", { src: lt.url(`thumbnail/${cell.token}`), alt: `${cell.title}, seed ${x + 1}`, loading: "lazy" }));
                button.onclick = () => lt.enlarge(table, y, x);
                return button;
            })))));
    }
})();
