/* Heat maps: an image beside itself, once for each chosen word, with what the word acts on lit up. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const POLL_MS = 400;
    let view = null; // {cell, chosen, file, layers, before, made}: `made` counts requests, so that late answers are ignored

    const box = () => document.getElementById("lora_train_heat");
    const part = (name) => box().querySelector(`.lt-heat-${name}`);
    const say = (text, isError = false) => Object.assign(part("message"), { textContent: text, className: `lt-heat-message ${isError ? "lt-heat-bad" : ""}` });
    const values = () => ({ token: view.cell.token, file: view.file, ...("caption" in view.cell ? { text: view.cell.caption } : {}) });

    /** The maps of an image, made if they are not made yet; null if that was stopped, or nobody wants them any more.
        `values` name the image, `shown` the words; `say` is called with a sentence while they are made. */
    lt.heatMaps = async (values, shown, { isWanted, say: report, onBusy = () => null }) => {
        report("Looking at the image…");
        let status = await lt.request("heatmap-start", values);
        while (isWanted() && status.state === "busy") {
            report(status.line);
            onBusy();
            await new Promise((done) => setTimeout(done, POLL_MS));
            status = await lt.request("heatmap-status");
        }
        if (!isWanted() || status.state === "stopped") return null;
        if (status.state === "failed") throw new Error(status.message);
        return lt.request("heatmap-show", { ...values, ...shown });
    };

    /** A button that opens the heat maps of an image {token, title, caption}; without `caption`, the server reads it. */
    lt.heatMapButton = (cell) => lt.smallButton("Heat maps", "Show where in the image each word of its prompt acts", () => {
        const enlarged = document.querySelector("#lora_train_view .lt-close");
        if (enlarged) enlarged.click();
        open(cell);
    });

    async function open(cell) {
        view = { cell, chosen: [], file: "", layers: "objects", before: document.activeElement, made: 0 };
        document.body.append(build());
        box().focus();
        const { token, caption } = cell;
        const answer = await lt.request("heatmap-open", caption === undefined ? { token } : { token, text: caption }).catch((problem) => say(problem.message, true));
        if (!answer || !view || view.cell !== cell) return;
        view.file = answer.lora;
        part("lora").replaceChildren(make("option", { value: "" }, "without LoRA"), ...answer.loras.map((one) => make("option", { value: one.file }, `with ${one.name}`)));
        part("lora").value = view.file;
        part("words").replaceChildren(...answer.words.map(chip));
        if (answer.words.length) choose(answer.words.find((word) => word.length > 3) || answer.words[0]); // no article
        else say("This image has no prompt or caption.", true);
    }

    function chip(word) {
        const button = make("button", { type: "button", className: "lt-heat-word", title: `Show or hide the map of ${word}`, "aria-pressed": "false" }, word);
        button.onclick = () => choose(word);
        return button;
    }
    function choose(word) {
        view.chosen = view.chosen.includes(word) ? view.chosen.filter((one) => one !== word) : [...view.chosen, word];
        for (const button of part("words").children) button.setAttribute("aria-pressed", String(view.chosen.includes(button.textContent)));
        show();
    }

    /** Make the maps if they are not made yet, and show those of the chosen words. */
    async function show() {
        const mine = (view.made += 1);
        const isMine = () => view && view.made === mine;
        try {
            const found = await lt.heatMaps(values(), { texts: view.chosen, layers: view.layers }, { isWanted: isMine, say, onBusy: () => (part("stop").hidden = false) });
            if (!isMine()) return;
            part("stop").hidden = true;
            if (!found) return void say("Stopped. Choose a word to start again.");
            draw(found);
        } catch (problem) {
            if (!isMine()) return;
            part("stop").hidden = true;
            say(problem.message, true);
        }
    }

    function draw(found) {
        say(found.maps.length ? "Point at an image to see it without the map." : "Choose a word.");
        const figure = (map) => make("figure", {}, make("div", {}, make("img", { src: found.image, alt: view.cell.title }), ...(map ? [make("img", { className: "lt-heat-layer", src: map.layer, alt: `Heat map of ${map.word}` })] : [])),
            make("figcaption", {}, ...(map ? [make("b", {}, map.word), make("span", { title: "The largest share of a location's attention that goes to this word. The map itself is always drawn at full strength." }, `at most ${(100 * map.peak).toFixed(1)}%`)] : [view.cell.title])));
        part("maps").replaceChildren(...(found.maps.length ? found.maps.map(figure) : [figure(null)]));
    }

    // --- the dialog -------------------------------------------------------------------------------
    function build() {
        const select = (name, title, options, change) => {
            const made = make("select", { className: `lt-heat-${name}`, title, "aria-label": title }, ...options.map(([value, label]) => make("option", { value }, label)));
            made.onchange = () => {
                change(made.value);
                show();
            };
            return made;
        };
        const typed = make("input", { type: "text", placeholder: "other words of the prompt", title: "Press Enter to show the map of these words", "aria-label": "Other words" });
        typed.onkeydown = (event) => {
            const word = typed.value.trim();
            if (event.key !== "Enter" || !word) return;
            if (![...part("words").children].some((one) => one.textContent === word)) part("words").append(chip(word));
            typed.value = "";
            if (!view.chosen.includes(word)) choose(word);
        };
        const close = make("button", { className: "lt-close", type: "button", title: "Close (Escape)", "aria-label": "Close" }, "×");
        close.onclick = closeView;
        const stop = make("button", { type: "button", className: "lt-small lt-heat-stop", hidden: true, title: "Stop after this step" }, "Stop");
        stop.onclick = () => lt.request("heatmap-stop").catch((problem) => say(problem.message, true));
        const made = make("div", { id: "lora_train_heat", role: "dialog", "aria-modal": "true", "aria-label": "Heat maps" }, close,
            make("div", { className: "lt-heat-words", role: "toolbar", "aria-label": "Words" }),
            make("div", { className: "lt-heat-row" }, typed,
                select("lora", "The LoRA that the maps are made with", [["", "without LoRA"]], (value) => (view.file = value)),
                select("layers", "Layers that show objects are sharper; all layers are those of DAAM", [["objects", "sharp"], ["all", "all layers"]], (value) => (view.layers = value)), stop),
            make("p", { className: "lt-heat-message", role: "status" }), make("div", { className: "lt-heat-maps" }));
        made.setAttribute("tabindex", "-1");
        for (const field of made.querySelectorAll("input, select")) field.dataset.ltOwn = "yes";
        made.addEventListener("keydown", (event) => {
            event.stopPropagation(); // the webui's shortcuts
            if (event.key === "Escape") closeView();
        });
        return made;
    }
    function closeView() {
        if (!part("stop").hidden) lt.request("heatmap-stop").catch(() => null);
        box().remove();
        if (view.before && view.before.focus) view.before.focus();
        view = null;
    }
})();
