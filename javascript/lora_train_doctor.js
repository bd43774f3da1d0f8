/* The data-set doctor of the Dataset panel: findings by kind with their pictures, a remedy per kind, undo. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const HELP = {
        "set aside": "Moves them beside the folder; nothing is deleted.",
        convert: "Saves them as PNG; the originals are kept beside the folder.",
        shrink: "Makes them smaller; the originals are kept beside the folder.",
        flatten: "Puts white behind what is transparent; the originals are kept.",
        "first frame": "Keeps the first frame as a picture; the originals are kept.",
        turn: "Turns the pixels upright; the originals are kept.",
        "write caption": "Writes the trigger and the class word as the caption.",
        "to UTF-8": "Saves the captions as UTF-8; the originals are kept.",
    };

    const open = new Set(); // the kinds that are unfolded, which stay so when the list is drawn anew

    async function ask(place, name, values = {}) {
        const button = place.querySelector(".lt-d-examine");
        button.disabled = true;
        button.textContent = name === "examine" ? "Looking…" : "Working…";
        place.querySelectorAll(".lt-d-kind button").forEach((one) => (one.disabled = true));
        const answer = await lt.ask(`doctor-${name}`, values).catch(lt.tell);
        button.disabled = false;
        button.textContent = "Examine the pictures";
        if (!answer) return place.querySelectorAll(".lt-d-kind button").forEach((one) => (one.disabled = false));
        draw(place, answer);
        if (name !== "examine" && document.querySelector("[data-lt-looked]")) lt.press("look"); // other files, another plan
        return undefined;
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
            make("summary", {}, make("b", {}, `${one.count} × ${one.kind}`), one.remedy ? act : make("span", { className: "lt-faint" }, "only you can decide")),
            upscale, make("ul", { className: "lt-c-lines" }, ...lines), more);
        box.ontoggle = () => (box.open ? open.add(one.kind) : open.delete(one.kind));
        return box;
    }

    function draw(place, answer) {
        const body = place.querySelector(".lt-d-body");
        const verdict = answer.kinds.length ? "" : `All ${answer.pictures.toLocaleString("en-US")} pictures and their captions are well.`;
        const undo = make("button", { type: "button", className: "lt-small", title: "Put back what the last remedy changed" }, "Undo");
        undo.onclick = () => ask(place, "undo");
        const told = answer.told ? make("p", { className: `lt-verdict ${answer.failed ? "lt-bad" : "lt-good"}`, role: "status" }, answer.told) : null;
        body.replaceChildren(...[told, verdict ? make("p", { className: "lt-verdict lt-good" }, verdict) : null].filter(Boolean),
            ...answer.kinds.map((one) => kindOf(place, one)), ...(answer.undo ? [undo] : []));
    }

    lt.drawDoctor = (place) => {
        if (place.firstChild) return;
        const examine = make("button", { type: "button", className: "lt-small lt-d-examine", title: "Looks for broken, tiny, huge, transparent, animated, turned and repeated pictures, and for captions that are missing, empty or unreadable. Nothing is changed." }, "Examine the pictures");
        examine.onclick = () => ask(place, "examine");
        place.append(make("div", { className: "lt-card" },
            make("div", { className: "lt-bar-row" }, make("h3", { className: "lt-heading" }, "Doctor", make("span", {}, "what is wrong with pictures and captions")), examine),
            make("div", { className: "lt-d-body" })));
    };
})();
