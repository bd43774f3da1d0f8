/* The dataset check of the Dataset panel: findings by kind with their images, repairs and undo. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const HELP = {
        "set aside": "Moves them beside the folder; nothing is deleted.",
        convert: "Saves them as PNG; the originals are kept beside the folder.",
        shrink: "Scales them down; the originals are kept beside the folder.",
        flatten: "Replaces transparency by white; the originals are kept.",
        "first frame": "Saves the first frame as an image; the originals are kept.",
        rotate: "Rotates the pixels upright; the originals are kept.",
        "write caption": "Writes the trigger and the class word as the caption.",
        rename: "Renames the folders, with one repeat and the same words; Undo renames them back.",
        "to UTF-8": "Saves the captions whose reading you chose below as UTF-8; the originals are kept.",
    };

    const open = new Set(); // expanded kinds, which stay expanded when the list is redrawn

    const POLL_MS = 1000;
    let timer = null;
    let report = 0; // the check that this page shows; the server keeps those of other pages too
    let isRepair = false; // this page started the running task, and it changes files

    const part = (container, name) => container.querySelector(`.lt-d-${name}`);
    const run = (container, name, values = {}) => {
        part(container, "check").disabled = true;
        container.querySelectorAll(".lt-d-body button").forEach((one) => (one.disabled = true));
        isRepair = name !== "run";
        return lt.request(`checkup-${name}`, { report, ...values }).then((answer) => handle(container, answer)).catch((problem) => {
            lt.notify(problem);
            rest(container);
        });
    };
    
    /** Show the progress until the task has ended. */
    function handle(container, answer) {
        clearTimeout(timer);
        report = answer.report || report;
        if (answer.state !== "busy") return end(container, answer);
        part(container, "check").disabled = true;
        part(container, "work").hidden = false;
        part(container, "line").textContent = answer.line;
        part(container, "bar").classList.toggle("lt-unknown", !answer.total);
        part(container, "bar").firstChild.style.width = answer.total ? `${(100 * answer.done) / answer.total}%` : "";
        const again = () => lt.request("checkup-status", { report }).then((next) => handle(container, next)).catch(() => handle(container, answer));
        timer = setTimeout(again, POLL_MS);
        return undefined;
    }

    function end(container, answer) {
        rest(container);
        if (answer.found) draw(container, answer.found, answer.message);
        if (isRepair && document.querySelector("[data-lt-scan]")) lt.press("scan"); // the files have changed
        isRepair = false;
    }

    function rest(container) {
        part(container, "work").hidden = true;
        part(container, "check").disabled = false;
        container.querySelectorAll(".lt-d-body button").forEach((one) => (one.disabled = false));
    }

    const select = (title, options) => make("select", { title, "aria-label": title }, ...options.map(([value, label]) => make("option", { value }, label)));

    /** A finding with its images, and the choice of which duplicate goes or how a caption reads. */
    function lineOf(found) {
        const goes = found.like ? select("Which of the two is set aside", [["", `Move ${found.name}, keep ${found.like}`], ["swap", `Move ${found.like}, keep ${found.name}`], ["skip", "both stay"]]) : null;
        const reads = found.readings.length ? select("The caption's encoding; captions without one are not changed", [["", "Choose its encoding"], ...found.readings]) : null;
        const line = make("li", {},
            ...found.tokens.map((token) => make("img", { className: "lt-d-thumb", src: lt.url(`thumbnail/${token}`), alt: found.name, loading: "lazy" })),
            make("p", {}, make("b", {}, found.name), ` ${found.message}`), goes, reads);
        Object.assign(line, { found, goes, reads });
        return line;
    }
    const choices = (lines) => {
        const numbers = (wanted) => lines.filter((line) => line.goes && line.goes.value === wanted).map((line) => line.found.number);
        const read = lines.filter((line) => line.reads && line.reads.value).map((line) => [line.found.number, line.reads.value]);
        return { skip: numbers("skip"), swap: numbers("swap"), encodings: Object.fromEntries(read) };
    };

    function kindOf(container, one) {
        const act = make("button", { type: "button", className: "lt-small", title: one.repair.split(" or ").map((name) => HELP[name] || name).join(" ") }, one.repair ? `${one.repair[0].toUpperCase()}${one.repair.slice(1)} (${one.count})` : "");
        act.onclick = () => run(container, "repair", { report: one.report, kind: one.kind, ...choices(lines) });
        const name = make("select", { title: "Upscalers of the webui whose models are installed. Lanczos adds no detail.", "aria-label": "Upscaler" },
            ...(one.upscalers || []).map((each) => make("option", {}, each)));
        const enlarge = make("button", { type: "button", className: "lt-small lt-d-upscale", title: "Upscales them to the training resolution. The originals, captions and masks are kept. Upscalers invent detail: check the results." }, `Upscale (${one.count})`);
        enlarge.onclick = () => run(container, "upscale", { report: one.report, upscaler: name.value });
        const upscale = one.upscalers && one.upscalers.length ? make("div", { className: "lt-tool lt-d-tools" }, name, enlarge, make("span", { className: "lt-faint" }, one.upscaler_note || "")) : null;
        const lines = one.findings.map(lineOf);
        const more = one.count > one.findings.length ? make("p", { className: "lt-faint" }, `and ${one.count - one.findings.length} more`) : null;
        const box = make("details", { className: `lt-d-kind lt-${one.level}`, open: open.has(one.kind) },
            make("summary", { title: "Show these images" }, make("b", {}, `${one.count} × ${one.kind}`), one.repair ? act : make("span", { className: "lt-faint" }, "review manually")),
            upscale, make("ul", { className: "lt-c-lines" }, ...lines), more);
        box.ontoggle = () => (box.open ? open.add(one.kind) : open.delete(one.kind));
        return box;
    }

    function draw(container, found, failure) {
        const isClean = !found.kinds.length && !found.message && !failure;
        const line = (good, text) => text && make("p", { className: `lt-verdict ${good ? "lt-good" : "lt-bad"}`, role: "status" }, text);
        const undo = make("button", { type: "button", className: "lt-small", title: "Restore what the last repair changed" }, "Undo");
        undo.onclick = () => run(container, "undo", { report: found.report, record: found.record });
        part(container, "body").replaceChildren(...[line(false, failure), line(!found.failed, found.message),
            line(true, isClean && `No problems found in ${lt.count(found.images, "image and its caption", "images and their captions")}.`)].filter(Boolean),
            ...found.kinds.map((one) => kindOf(container, one)), ...(found.undo ? [undo] : []));
    }

    lt.drawCheckup = (container) => {
        if (container.firstChild) return;
        const check = make("button", { type: "button", className: "lt-small lt-d-check", title: "Finds broken, tiny, huge, transparent, animated, rotated and duplicate images, and missing, empty or unreadable captions. Nothing is changed." }, "Check images");
        check.onclick = () => run(container, "run");
        const stop = make("button", { type: "button", className: "lt-small lt-d-stop", title: "Stop after the current image; results so far are kept" }, "Stop");
        stop.onclick = () => lt.request("checkup-stop").catch(lt.notify);
        container.append(make("div", { className: "lt-card" },
            make("div", { className: "lt-bar-row" }, make("h3", { className: "lt-heading" }, "Dataset check", make("span", {}, "problems of images and captions")), check),
            make("div", { className: "lt-d-work", hidden: true }, make("div", { className: "lt-d-bar lt-progress" }, make("span")),
                make("p", { className: "lt-d-line lt-faint", role: "status" }), stop),
            make("div", { className: "lt-d-body" })));
        lt.request("checkup-status").then((answer) => { // after a reload it may still run; after a restart there may be an Undo
            if (answer.state === "busy") handle(container, answer);
            else if (answer.state === "idle" && answer.undo) draw(container, { kinds: [], message: "Repairs of an earlier session can be undone.", undo: answer.undo, report: 0 });
        }).catch(() => undefined);
    };
})();
