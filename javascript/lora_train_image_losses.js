/* Images by loss: the training images of a run, those that stand out most first, with the reason and what to do. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const small = (...all) => lt.smallButton(...all);
    const POLL_MS = 700;
    const AT_A_TIME = 12;
    const share = (value) => {
        const percent = Math.round(100 * value);
        return `${percent > 0 ? "+" : percent < 0 ? "−" : "±"}${Math.abs(percent)} %`;
    };

    /** The folded section of a past run; its content is fetched when it is unfolded. */
    lt.imageLosses = (run) => {
        const body = make("div", { className: "lt-losses-body" });
        const section = make("details", { className: "lt-skipped lt-losses" },
            make("summary", { title: "Show the training images, those whose loss stands out first" }, "Images by loss"), body);
        Object.assign(section, { run, body, shown: AT_A_TIME });
        section.ontoggle = () => section.open && !body.firstChild && load(section).catch(lt.notify);
        return section;
    };

    async function load(section) {
        const [found, status] = await Promise.all([lt.request("image-losses-show", { run: section.run }), lt.request("image-losses-status")]);
        section.found = found;
        draw(section);
        if (status.state === "busy" && status.run === section.run) follow(section, status);
    }

    function draw(section) {
        const { images, total, epoch, can_measure, standing_out: many } = section.found;
        const measure = small(images.length ? "Measure again" : "Measure every image", "Measures the loss of every training image with the newest LoRA file of this run, and without it. Nothing is trained.", () => start(section));
        measure.disabled = !can_measure;
        const head = !images.length ? (can_measure ? "The images of this run have not been measured." : "This run has no LoRA file to measure its images with.")
            : `${lt.count(total, "image")}, measured ${epoch ? `after epoch ${epoch}` : "with its newest file"}: ${many ? `${lt.count(many, "stands", "stand")} out` : "none stands out"}.`;
        const more = small("Show more", `Show up to ${AT_A_TIME} more`, () => {
            section.shown += AT_A_TIME;
            draw(section);
        });
        section.body.replaceChildren(
            make("div", { className: "lt-bar-row" }, make("p", { className: "lt-losses-head", role: "status" }, head), measure),
            make("ol", { className: "lt-losses-list" }, ...images.slice(0, section.shown).map((one) => row(section, one))),
            ...(images.length > section.shown ? [more] : []),
            ...(total > images.length && images.length <= section.shown ? [make("p", { className: "lt-faint" }, `The other ${lt.whole(total - images.length)} stand out less.`)] : []));
    }

    // --- one image --------------------------------------------------------------------------------
    function thumb(one, name) {
        if (!one.token) return make("span", { className: "lt-losses-gone", title: `${one.path} is gone` }, "gone");
        const button = make("button", { type: "button", className: "lt-thumb", title: "Enlarge" }, make("img", { src: lt.url(`thumbnail/${one.token}`), alt: name, loading: "lazy" }));
        button.onclick = () => lt.enlarge([[{ token: one.token, title: name, text: one.caption || "" }]], 0, 0);
        return button;
    }

    function row(section, one) {
        const name = lt.fileName(one.path);
        const number = (value) => value.toFixed(value < 0.1 ? 4 : 3);
        const facts = make("p", { className: "lt-losses-facts", title: `Expected ${number(one.expected)}. Without its caption ${number(one.uncaptioned)}, without LoRA and caption ${number(one.untrained)}.` },
            "loss ", make("b", {}, number(one.loss)), " · excess ", make("b", {}, share(one.excess)));
        const near = make("div", { className: "lt-losses-near", hidden: true });
        const fix = small("Fix the caption", "Open this image in the Captions panel", () => lt.editCaption(one.folder, name));
        fix.disabled = !one.token;
        const item = make("li", { className: one.stands_out ? "lt-losses-out" : "" }, thumb(one, name),
            make("div", {}, make("div", { className: "lt-bar-row" }, make("b", {}, name), facts),
                make("p", { className: "lt-losses-caption" }, one.caption || make("i", { className: "lt-faint" }, "no caption")),
                make("p", { className: "lt-losses-why" }, one.sentence),
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
        const percent = (value) => `${(100 * value).toFixed(0)} % alike`;
        near.append(...(one.nearest.length ? one.nearest.map((other) => {
            const title = lt.fileName(other.path);
            const figure = make("figure", {}, thumb({ ...other, caption: "" }, title), make("figcaption", {}, make("b", {}, title), make("span", {}, percent(other.likeness))));
            const button = figure.querySelector("button");
            // Both in one table, so that the view can compare them.
            if (button && one.token) button.onclick = () => lt.enlarge([[{ token: one.token, title: name, text: one.caption }], [{ token: other.token, title, text: percent(other.likeness) }]], 1, 0);
            return figure;
        }) : [make("p", { className: "lt-faint" }, "The run has no other image.")]));
    }

    // --- measuring --------------------------------------------------------------------------------
    async function start(section) {
        try {
            follow(section, await lt.request("image-losses-start", { run: section.run }));
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
            small("Stop", "Stop measuring; nothing is kept", () => lt.request("image-losses-stop").catch(lt.notify)));
        const again = () => section.isConnected && lt.request("image-losses-status").then((next) => follow(section, next)).catch(() => follow(section, status));
        setTimeout(again, POLL_MS);
        return undefined;
    }
})();
