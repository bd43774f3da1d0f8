/* The LoRA Train tab: what all its files use. Display only; what changes anything goes through the form's own buttons,
   or through `lt.ask` with the key that stands in the page. The webui loads this file first, as names are ordered. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});

    // --- words ------------------------------------------------------------------------------------
    lt.LIVE = ["running", "paused", "waiting", "stopping"];
    lt.PHASES = {
        load: "Loading the model",
        scan: "Reading the folders",
        latents: "Encoding images",
        text: "Encoding captions",
        train: "Training",
        samples: "Drawing samples",
        grid: "Drawing the grid",
        evaluate: "Measuring",
    };
    lt.STATES = {
        idle: "Ready",
        queued: "Waiting",
        running: "Running",
        paused: "Paused",
        waiting: "Waiting",
        stopping: "Stopping",
        stopped: "Stopped",
        finished: "Finished",
        failed: "Failed",
    };
    lt.whole = (value) => value.toLocaleString("en-US");

    // --- the page ---------------------------------------------------------------------------------
    lt.page = () => (typeof gradioApp === "function" ? gradioApp() : document);

    /** An element with properties, `data-` and `aria-` attributes, and children (nodes or texts). */
    lt.make = (name, properties = {}, ...children) => {
        const made = document.createElement(name);
        for (const [key, value] of Object.entries(properties)) {
            if (key in made) made[key] = value;
            else made.setAttribute(key, value);
        }
        made.append(...children.filter((child) => child !== null && child !== undefined));
        return made;
    };
    const make = lt.make;

    lt.clock = (seconds) => {
        if (seconds === null || seconds === undefined) return "–";
        const all = Math.round(seconds);
        const parts = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
        const text = parts.map((part) => String(part).padStart(2, "0")).join(":");
        return text.replace(/^00:/, "").replace(/^0(\d:)/, "$1");
    };
    lt.rate = (value) => {
        if (!value) return "0";
        return value >= 1e-3 ? String(Number(value.toPrecision(3))) : value.toExponential(1).replace(".0e", "e");
    };

    lt.url = (path) => new URL(`lora-train/v1/${path}`, window.location.href.split(/[?#]/)[0]).href;

    /** The server's answer to one of the page's own buttons; throws with its sentence when it refuses. */
    lt.ask = async (name, values = {}) => {
        const door = lt.page().querySelector("#lora_train_door [data-key]");
        const response = await fetch(lt.url(`page/${name}`), {
            method: "POST",
            headers: { "Content-Type": "application/json", "X-LoRA-Train-Page": door ? door.dataset.key : "" },
            body: JSON.stringify(values),
        });
        const answer = await response.json().catch(() => ({ detail: {} }));
        if (!response.ok) throw new Error((answer.detail || {}).message || `The server answered ${response.status}.`);
        return answer;
    };

    /** A button of gradio's by its name, whichever element carries the id. */
    lt.press = (name) => {
        const button = lt.page().querySelector(`button#lora_train_${name}, #lora_train_${name} button`);
        if (button) button.click();
    };

    /** A change of the form that the server has prepared: asked for, then taken with the form's values. */
    lt.change = (name, values) => lt.ask(name, values).then(() => lt.press("take")).catch(lt.tell);

    /** A sentence in the strip, for a moment. */
    lt.tell = (problem) => {
        const place = lt.page().querySelector("#lora_train_state [data-lt='strip']");
        if (!place) return;
        place.querySelectorAll(".lt-told").forEach((old) => old.remove());
        const told = lt.make("p", { className: "lt-told", role: "status" }, problem.message || String(problem));
        place.append(told);
        setTimeout(() => told.remove(), 8000);
    };

    lt.copy = async (text, button) => {
        await navigator.clipboard.writeText(text).catch(() => copyByHand(text));
        const before = button.textContent;
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = before), 1200);
    };
    // The clipboard interface exists on https and localhost only; a webui in the local network has neither.
    function copyByHand(text) {
        const area = make("textarea", { value: text });
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
})();
