/* Auto-tag in the Captions panel: options, preview, progress and skipped images. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const TYPING_MS = 350;
    const POLL_MS = 1000;
    const STORAGE_KEY = "lora-train-tagging"; // options of the last request
    const ENDS = { done: "Done.", stopped: "Stopped.", failed: "Failed." };

    const loadStored = () => {
        try {
            return JSON.parse(localStorage.getItem(STORAGE_KEY)) || {};
        } catch {
            return {};
        }
    };
    const store = (values) => {
        try {
            localStorage.setItem(STORAGE_KEY, JSON.stringify(values));
        } catch { /* storage is disabled */ }
    };

    lt.taggingCard = (panel) => {
        const fields = JSON.parse(panel.container.dataset.tagging);
        const inputs = {};
        const start = loadStored();
        let card = null;
        let status = { state: "idle" };
        let timer = null;
        let hasOptions = false;
        const part = (name) => card.querySelector(`.lt-a-${name}`);
        const isBusy = () => status.state === "busy";

        // --- options --------------------------------------------------------------------------------
        const valueOf = (input) => (input.type === "checkbox" ? input.checked : input.value);
        const ownValues = () => Object.fromEntries(fields.map((field) => [field.name, valueOf(inputs[field.name])]));
        const request = () => ({ ...panel.scoped(part("scope").value), ...ownValues(), tagger: part("tagger").value });

        function inputOf(field) {
            const first = field.name !== "trigger" && field.name in start ? start[field.name] : field.default;
            if (field.kind === "checkbox") return make("input", { type: "checkbox", checked: Boolean(first) });
            if (field.kind === "choice") {
                const made = make("select", {}, ...field.choices.map(([value, label]) => make("option", { value }, label)));
                made.value = first;
                return made;
            }
            const number = field.kind === "number" ? { type: "number", min: 0, max: 1, step: 0.01 } : { type: "text", spellcheck: false };
            return make("input", { ...number, value: first });
        }

        function box(field) {
            const input = inputOf(field);
            inputs[field.name] = input;
            input.title = field.help;
            input.addEventListener(field.kind === "checkbox" || field.kind === "choice" ? "change" : "input", changed);
            if (field.name === "exclude") lt.addCompletion(input, panel.container);
            const label = make("span", {}, field.label);
            const isCheckbox = field.kind === "checkbox";
            const made = make("label", { className: `lt-field ${isCheckbox ? "lt-checkbox" : "lt-line"} lt-a-${field.name}`, title: field.help }, ...(isCheckbox ? [input, label] : [label, input]));
            if (field.kind === "wide") made.classList.add("lt-a-wide");
            return made;
        }

        const changed = () => {
            store({ ...ownValues(), tagger: part("tagger").value });
            fit();
            previewSoon();
        };
        function fit() {
            const tagger = part("tagger").value;
            for (const field of fields) part(field.name).hidden = field.taggers.length > 0 && !field.taggers.includes(tagger);
        }

        // --- requests ---------------------------------------------------------------------------------
        async function loadOptions() {
            const answer = await lt.request("tagging-options").catch(lt.notify);
            if (!answer) return;
            hasOptions = true;
            const chosen = part("tagger").value || start.tagger; // since the card was last opened, or in an earlier visit
            part("tagger").replaceChildren(...answer.taggers.map((one) => make("option", { value: one.name, title: one.help }, one.name)));
            part("tagger").value = answer.taggers.some((one) => one.name === chosen) ? chosen : answer.taggers[0].name;
            part("note").textContent = answer.note;
            fit();
            handle(answer.status);
            preview();
        }

        async function preview() {
            if (!hasOptions || !card.open || !panel.shown() || isBusy()) return;
            const answer = await lt.request("tagging-preview", request()).catch((problem) => ({ message: problem.message, number: 0 }));
            if (isBusy()) return;
            part("message").textContent = answer.message;
            part("start").disabled = !answer.number;
        }
        let typing = null;
        const previewSoon = () => {
            clearTimeout(typing);
            typing = setTimeout(preview, TYPING_MS);
        };

        const begin = () => lt.request("tagging-start", request()).then((answer) => {
            status = { ...answer, state: "busy" }; // a few images may already be done
            handle(answer);
        }).catch((problem) => {
            part("message").textContent = problem.message;
        });
        const stop = () => lt.request("tagging-stop").then(handle).catch(lt.notify);

        // --- progress ---------------------------------------------------------------------------------
        function handle(answer) {
            const wasBusy = isBusy();
            status = answer;
            draw();
            clearTimeout(timer);
            if (isBusy()) timer = setTimeout(() => lt.request("tagging-status").then(handle).catch(() => handle({ ...status })), POLL_MS);
            else if (wasBusy) panel.refresh();
        }

        function draw() {
            const bar = part("bar");
            bar.hidden = !isBusy();
            bar.classList.toggle("lt-unknown", !status.total);
            bar.firstChild.style.width = status.total ? `${(100 * status.done) / status.total}%` : "";
            part("start").hidden = isBusy();
            part("stop").hidden = !isBusy();
            const container = status.folder ? status.folder.replace(/[\\/]+$/, "").split(/[\\/]/).pop() : "";
            part("state").textContent = isBusy() ? `${container}, by ${status.tagger}: ${status.line}` : [ENDS[status.state], status.message].filter(Boolean).join(" ");
            part("state").className = `lt-a-state ${status.state === "failed" ? "lt-bad" : "lt-faint"}`;
            part("message").hidden = isBusy();
            const skipped = status.skipped || [];
            const more = (status.skipped_count || 0) - skipped.length;
            part("skipped").replaceChildren(...skipped.map((one) => make("li", {}, make("p", {}, make("b", {}, one.name), ` skipped: ${one.reason}`))),
                ...(more > 0 ? [make("li", {}, make("p", {}, `and ${lt.whole(more)} more`))] : []));
        }

        // --- the card ---------------------------------------------------------------------------------
        const button = (label, name, title, work) => {
            const made = make("button", { type: "button", className: `lt-small lt-a-${name}`, title }, label);
            made.onclick = work;
            return made;
        };
        const tagger = make("select", { className: "lt-a-tagger", title: "The model that writes the captions", "aria-label": "Tagger" });
        tagger.onchange = changed;
        const scope = lt.captionScopes("lt-a-scope", "Images to tag", "images");
        scope.onchange = previewSoon;
        card = make("details", { className: "lt-card lt-skipped lt-auto" }, make("summary", { title: "DeepBooru, BLIP or your own WD14 model" }, "Auto-tag", make("span", {}, "write captions with a tagger")), make("div", { className: "lt-a-body" },
            make("div", { className: "lt-tool lt-c-row" }, tagger, scope,
                button("Tag", "start", "Tag the images and write each caption at once. Undo restores them all.", begin),
                button("Stop", "stop", "Stop after the current image and write the captions so far.", stop)),
            make("div", { className: "lt-a-fields" }, ...fields.map(box)),
            make("p", { className: "lt-a-note lt-faint" }), make("p", { className: "lt-a-message", role: "status" }),
            make("div", { className: "lt-a-bar lt-progress" }, make("span")), make("p", { className: "lt-a-state lt-faint", role: "status" }),
            make("ul", { className: "lt-a-skipped lt-c-lines" })));
        card.ontoggle = () => card.open && loadOptions();
        panel.container.addEventListener("lt-shown", previewSoon);
        panel.container.addEventListener("lt-words", () => {
            inputs.trigger.value = (panel.container.words || {}).trigger || "";
            previewSoon();
        });
        draw();
        return card;
    };
})();
