/* The report on a run's tags: which were learnt, which are ignored, which steal from the trigger or pull others along. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const small = (...all) => lt.smallButton(...all);
    const POLL_MS = 700;
    const AT_A_TIME = 12;

    /** The folded section of a past run; its content is fetched when it is unfolded. */
    lt.tagReport = (run) => {
        const body = make("div", { className: "lt-losses-body" });
        const section = make("details", { className: "lt-skipped lt-tags" },
            make("summary", { title: "Show what each tag of the captions became: learnt, ignored, or in the way" }, "Tags"), body);
        Object.assign(section, { run, body, shown: AT_A_TIME });
        section.ontoggle = () => section.open && !body.firstChild && load(section).catch(lt.notify);
        return section;
    };

    async function load(section) {
        const [found, status] = await Promise.all([lt.request("tags-show", { run: section.run }), lt.request("tags-status")]);
        section.found = found;
        draw(section);
        if (status.state === "busy" && status.run === section.run) follow(section, status);
    }

    function draw(section) {
        const { tags, epoch, can_measure } = section.found;
        const measure = small(tags.length ? "Measure again" : "Measure the tags", "Draws each trigger with and without every tag, with the newest LoRA file of this run, and compares the images. Nothing is trained.", () => start(section, ""));
        measure.disabled = !can_measure;
        const many = tags.filter((one) => one.stands_out).length;
        const head = !tags.length ? (can_measure ? "The tags of this run have not been measured." : "This run has no LoRA file to measure its tags with.")
            : `${lt.count(tags.length, "tag")}, measured ${epoch ? `after epoch ${epoch}` : "with its newest file"}: ${many ? `${lt.count(many, "stands", "stand")} out` : "none stands out"}.`;
        const more = small("Show more", `Show up to ${AT_A_TIME} more`, () => {
            section.shown += AT_A_TIME;
            draw(section);
        });
        section.body.replaceChildren(
            make("div", { className: "lt-bar-row" }, make("p", { className: "lt-losses-head", role: "status" }, head), measure),
            make("ol", { className: "lt-losses-list" }, ...tags.slice(0, section.shown).map((one) => row(section, one))),
            ...(tags.length > section.shown ? [more] : []));
    }

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
        return make("li", { className: one.stands_out ? "lt-losses-out" : "" },
            make("div", {}, make("div", { className: "lt-bar-row" }, make("b", {}, one.tag), make("span", { className: "lt-faint" }, `${lt.whole(one.images)} of ${lt.count(one.total, "caption")}${one.trigger ? ` of ${one.trigger}` : ""}`)),
                make("p", { className: "lt-losses-why" }, one.sentence),
                ...(one.advice ? [make("p", { className: "lt-losses-caption" }, one.advice)] : []),
                make("div", { className: "lt-toolbar" }, measured ? look : small("Draw it", "Draw and measure this tag too", () => start(section, one.tag)), leave),
                images));
    }

    async function showImages(section, one, place) {
        place.hidden = !place.hidden;
        if (place.firstChild) return;
        const { rows } = await lt.request("tags-images", { run: section.run, prompt: one.prompt });
        const table = rows.map((row) => row.images.map((token) => ({ token, title: row.prompt || "empty prompt", text: row.prompt })));
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

    // --- measuring --------------------------------------------------------------------------------
    async function start(section, tag) {
        try {
            follow(section, await lt.request("tags-start", { run: section.run, tag }));
        } catch (problem) {
            lt.notify(problem);
        }
    }

    function follow(section, status) {
        const head = section.body.querySelector(".lt-bar-row");
        if (status.state !== "busy") {
            if (status.state === "failed") lt.notify(status.message);
            return void load(section).catch(lt.notify);
        }
        head.replaceChildren(make("p", { className: "lt-losses-head", role: "status" }, status.line),
            small("Stop", "Stop measuring; the images are kept, so that it can continue", () => lt.request("tags-stop").catch(lt.notify)));
        const again = () => section.isConnected && lt.request("tags-status").then((next) => follow(section, next)).catch(() => follow(section, status));
        setTimeout(again, POLL_MS);
        return undefined;
    }
})();
