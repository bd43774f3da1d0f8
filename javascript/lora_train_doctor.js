/* The dataset doctor of the Dataset panel: findings by kind with their images, a remedy per kind, undo. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const HELP = {
        "set aside": "Moves them beside the folder; nothing is deleted.",
        convert: "Saves them as PNG; the originals are kept beside the folder.",
        shrink: "Makes them smaller; the originals are kept beside the folder.",
        flatten: "Puts white behind what is transparent; the originals are kept.",
        "first frame": "Keeps the first frame as an image; the originals are kept.",
        turn: "Turns the pixels upright; the originals are kept.",
        "write caption": "Writes the trigger and the class word as the caption.",
        "to UTF-8": "Saves the captions as UTF-8; the originals are kept.",
    };

    const open = new Set(); // the kinds that are unfolded, which stay so when the list is drawn anew

    const POLL_MS = 1000;
    let timer = null;
    let isRemedy = false; // what is under way was asked for here and changes files

    const part = (place, name) => place.querySelector(`.lt-d-${name}`);
    const ask = (place, name, values = {}) => {
        part(place, "examine").disabled = true;
        place.querySelectorAll(".lt-d-body button").forEach((one) => (one.disabled = true));
        isRemedy = name !== "examine";
        return lt.ask(`doctor-${name}`, values).then((answer) => take(place, answer)).catch((problem) => {
            lt.tell(problem);
            rest(place);
        });
    };
    
    /** What the server says of work under way, until it is done. */
    function take(place, answer) {
        clearTimeout(timer);
        if (answer.state !== "busy") return end(place, answer);
        part(place, "examine").disabled = true;
        part(place, "work").hidden = false;
        part(place, "line").textContent = answer.line;
        part(place, "bar").classList.toggle("lt-unknown", !answer.total);
        part(place, "bar").firstChild.style.width = answer.total ? `${(100 * answer.done) / answer.total}%` : "";
        const again = () => lt.ask("doctor-status").then((next) => take(place, next)).catch(() => take(place, answer));
        timer = setTimeout(again, POLL_MS);
        return undefined;
    }

    function end(place, answer) {
        rest(place);
        if (answer.found) draw(place, answer.found, answer.message);
        if (isRemedy && document.querySelector("[data-lt-looked]")) lt.press("look"); // other files, another plan
        isRemedy = false;
    }

    function rest(place) {
        part(place, "work").hidden = true;
        part(place, "examine").disabled = false;
        place.querySelectorAll(".lt-d-body button").forEach((one) => (one.disabled = false));
    }

    function kindOf(place, one) {
        const act = make("button", { type: "button", className: "lt-small", title: one.remedy.split(" or ").map((name) => HELP[name] || name).join(" ") }, one.remedy ? `${one.remedy[0].toUpperCase()}${one.remedy.slice(1)} (${one.count})` : "");
        act.onclick = () => ask(place, "treat", { kind: one.kind });
        const name = make("select", { title: "The webui's own upscalers whose models are there; Lanczos adds no detail", "aria-label": "Upscaler" },
            ...(one.upscalers || []).map((each) => make("option", {}, each)));
        const enlarge = make("button", { type: "button", className: "lt-small lt-d-upscale", title: "Enlarges them to the training resolution; the originals are kept, captions and masks stay. An upscaler invents detail: look at the results." }, `Upscale (${one.count})`);
        enlarge.onclick = () => ask(place, "upscale", { upscaler: name.value });
        const upscale = one.upscalers && one.upscalers.length ? make("div", { className: "lt-tool lt-d-tools" }, name, enlarge) : null;
        const lines = one.findings.map((found) => make("li", {},
            ...found.tokens.map((token) => make("img", { className: "lt-d-thumb", src: lt.url(`thumbnail/${token}`), alt: found.name, loading: "lazy" })),
            make("p", {}, make("b", {}, found.name), ` ${found.message}`)));
        const more = one.count > one.findings.length ? make("p", { className: "lt-faint" }, `and ${one.count - one.findings.length} more`) : null;
        const box = make("details", { className: `lt-d-kind lt-${one.level}`, open: open.has(one.kind) },
            make("summary", { title: "Unfold the images that this is about" }, make("b", {}, `${one.count} × ${one.kind}`), one.remedy ? act : make("span", { className: "lt-faint" }, "only you can decide")),
            upscale, make("ul", { className: "lt-c-lines" }, ...lines), more);
        box.ontoggle = () => (box.open ? open.add(one.kind) : open.delete(one.kind));
        return box;
    }

    function draw(place, found, failure) {
        const isWell = !found.kinds.length && !found.told && !failure;
        const line = (good, text) => text && make("p", { className: `lt-verdict ${good ? "lt-good" : "lt-bad"}`, role: "status" }, text);
        const undo = make("button", { type: "button", className: "lt-small", title: "Put back what the last remedy changed" }, "Undo");
        undo.onclick = () => ask(place, "undo");
        part(place, "body").replaceChildren(...[line(false, failure), line(!found.failed, found.told),
            line(true, isWell && `All ${lt.whole(found.images)} images and their captions are well.`)].filter(Boolean),
            ...found.kinds.map((one) => kindOf(place, one)), ...(found.undo ? [undo] : []));
    }

    lt.drawDoctor = (place) => {
        if (place.firstChild) return;
        const examine = make("button", { type: "button", className: "lt-small lt-d-examine", title: "Looks for broken, tiny, huge, transparent, animated, turned and repeated images, and for captions that are missing, empty or unreadable. Nothing is changed." }, "Examine the images");
        examine.onclick = () => ask(place, "examine");
        const halt = make("button", { type: "button", className: "lt-small lt-d-stop", title: "End after the present image; what is found or done by then stays" }, "Stop");
        halt.onclick = () => lt.ask("doctor-stop").catch(lt.tell);
        place.append(make("div", { className: "lt-card" },
            make("div", { className: "lt-bar-row" }, make("h3", { className: "lt-heading" }, "Doctor", make("span", {}, "what is wrong with images and captions")), examine),
            make("div", { className: "lt-d-work", hidden: true }, make("div", { className: "lt-d-bar lt-progress" }, make("span")),
                make("p", { className: "lt-d-line lt-faint", role: "status" }), halt),
            make("div", { className: "lt-d-body" })));
        lt.ask("doctor-status").then((answer) => answer.state === "busy" && take(place, answer)).catch(() => undefined); // a reload joins in
    };
})();
