/* The LoRA Train tab: what all its scripts share. Changes go through the buttons of the form, or through `lt.request`
   with the key in the page. Webuis load scripts in alphabetical order, so this one comes first. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});

    // --- words ------------------------------------------------------------------------------------
    lt.LIVE = ["running", "paused", "waiting", "stopping"];
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
    lt.COMMAS_AND_LINES = /[,，、､﹐﹑\n]/; // what separates tags, as in dataset/captions.py
    lt.whole = (value) => value.toLocaleString("en-US");
    /** 0.6249 → "0.62"; what rounds to zero has no sign: -0.001 → "0.00". */
    lt.fixed = (value, digits = 2) => value.toFixed(digits).replace(/^-(?=[0.]+$)/, "");
    /** 1 → "1 image", 2000 → "2,000 images". */
    lt.count = (number, noun, plural) => `${lt.whole(number)} ${number === 1 ? noun : plural || `${noun}s`}`;

    // --- the page ---------------------------------------------------------------------------------
    lt.page = () => (typeof gradioApp === "function" ? gradioApp() : document);

    /** An element with properties, `data-` and `aria-` attributes, and children (nodes or texts). */
    lt.make = (name, properties = {}, ...children) => {
        const made = document.createElement(name);
        for (const [key, value] of Object.entries(properties)) {
            if (key === "title" && !value) continue; // an empty tooltip hides that of the element around it
            if (key in made) made[key] = value;
            else made.setAttribute(key, value);
        }
        made.append(...children.filter((child) => child !== null && child !== undefined));
        return made;
    };
    const make = lt.make;

    lt.smallButton = (label, title, work) => {
        const button = make("button", { type: "button", className: "lt-small", title }, label);
        button.onclick = () => work(button);
        return button;
    };

    /** Open a panel by its name. */
    lt.openPanel = (name) => {
        const tabs = lt.page().querySelectorAll("#lora_train_panels [role=tab], #lora_train_panels .tab-nav button");
        const tab = [...tabs].find((one) => one.textContent.trim() === name);
        if (tab) tab.click();
    };

    /** What Python's `render_tooltips` knows: {parameters, tooltips, phases, measures, merge_methods}, null until gradio has built the page. */
    lt.pageData = () => {
        const element = lt.page().querySelector("[data-lt='tooltips']");
        if (!element) return null;
        if (!element.known) element.known = JSON.parse(element.dataset.tooltips);
        return element.known;
    };
    lt.phaseTitle = (phase) => ((lt.pageData() || { phases: {} }).phases[phase]);

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

    /** The result of an action on the server; throws with the server's message if it fails. */
    lt.request = async (name, values = {}) => {
        const pageKey = lt.page().querySelector("#lora_train_page_key [data-key]");
        const response = await fetch(lt.url(`page/${name}`), {
            method: "POST",
            headers: { "Content-Type": "application/json", "X-LoRA-Train-Page": pageKey ? pageKey.dataset.key : "" },
            body: JSON.stringify(values),
        });
        const answer = await response.json().catch(() => ({ detail: {} }));
        if (!response.ok) throw new Error((answer.detail || {}).message || `The server returned HTTP ${response.status}.`);
        return answer;
    };

    /** Click a gradio button by name; gradio versions differ in which element has the id. */
    lt.press = (name) => {
        const button = lt.page().querySelector(`button#lora_train_${name}, #lora_train_${name} button`);
        if (button) button.click();
    };

    /** Let the server stage a change of the form, then apply it with the values of the form. */
    lt.applyChange = (name, values) => lt.request(name, values).then(() => lt.press("apply_change")).catch(lt.notify);

    /** Show a message in the strip for a few seconds. */
    lt.notify = (problem) => {
        const container = lt.page().querySelector("#lora_train_state [data-lt='strip']");
        if (!container) return;
        container.querySelectorAll(".lt-message").forEach((old) => old.remove());
        const message = lt.make("p", { className: "lt-message", role: "status" }, problem.message || String(problem));
        container.append(message);
        setTimeout(() => message.remove(), 8000);
    };

    lt.copy = async (text, button) => {
        await navigator.clipboard.writeText(text).catch(() => copyByHand(text));
        const before = button.textContent;
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = before), 1200);
    };
    // The clipboard API exists on https and localhost only, so not for a webui in the local network.
    function copyByHand(text) {
        const area = make("textarea", { value: text });
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }
})();
