/* Auto-tag in the Captions panel: the order, what it would touch, how far it is, what was skipped. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const whole = (value) => value.toLocaleString("en-US");
    const TYPING_MS = 350;
    const POLL_MS = 1000;
    const KEPT = "lora-train-tagging"; // this browser's last order
    const ENDS = { done: "Done.", stopped: "Stopped.", failed: "Failed." };

    const kept = () => {
        try {
            return JSON.parse(localStorage.getItem(KEPT)) || {};
        } catch {
            return {};
        }
    };
    const keep = (values) => {
        try {
            localStorage.setItem(KEPT, JSON.stringify(values));
        } catch { /* a browser that keeps nothing forgets the order */ }
    };

    lt.taggingCard = (panel) => {
        const fields = JSON.parse(panel.place.dataset.tagging);
        const inputs = {};
        const start = kept();
        let card = null;
        let status = { state: "idle" };
        let timer = null;
        let isOffered = false;
        const part = (name) => card.querySelector(`.lt-a-${name}`);
        const isBusy = () => status.state === "busy";

        // --- the order ------------------------------------------------------------------------------
        const valueOf = (input) => (input.type === "checkbox" ? input.checked : input.value);
        const own = () => Object.fromEntries(fields.map((field) => [field.name, valueOf(inputs[field.name])]));
        const order = () => ({ ...panel.order(part("scope").value), ...own(), tagger: part("tagger").value });

        function inputOf(field) {
            const first = field.name !== "trigger" && field.name in start ? start[field.name] : field.start;
            if (field.kind === "tick") return make("input", { type: "checkbox", checked: Boolean(first) });
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
            input.addEventListener(field.kind === "tick" || field.kind === "choice" ? "change" : "input", changed);
            if (field.name === "exclude") lt.completes(input, panel.place);
            const label = make("span", {}, field.label);
            const isTick = field.kind === "tick";
            const made = make("label", { className: `lt-field ${isTick ? "lt-tick" : "lt-line"} lt-a-${field.name}`, title: field.help }, ...(isTick ? [input, label] : [label, input]));
            if (field.kind === "wide") made.classList.add("lt-a-wide");
            return made;
        }

        const changed = () => {
            keep({ ...own(), tagger: part("tagger").value });
            fit();
            previewSoon();
        };
        function fit() {
            const tagger = part("tagger").value;
            for (const field of fields) part(field.name).hidden = field.only.length > 0 && !field.only.includes(tagger);
        }

        // --- asking -----------------------------------------------------------------------------------
        async function offer() {
            const answer = await lt.ask("tagging-offer").catch(lt.tell);
            if (!answer) return;
            isOffered = true;
            part("tagger").replaceChildren(...answer.taggers.map((one) => make("option", { value: one.name, title: one.help }, one.name)));
            const wanted = answer.taggers.some((one) => one.name === start.tagger) ? start.tagger : answer.taggers[0].name;
            part("tagger").value = wanted;
            part("note").textContent = answer.note;
            fit();
            take(answer.status);
            preview();
        }

        async function preview() {
            if (!isOffered || !card.open || !panel.shown() || isBusy()) return;
            const answer = await lt.ask("tagging-preview", order()).catch((problem) => ({ told: problem.message, touched: 0 }));
            if (isBusy()) return;
            part("told").textContent = answer.told;
            part("start").disabled = !answer.touched;
        }
        let typing = null;
        const previewSoon = () => {
            clearTimeout(typing);
            typing = setTimeout(preview, TYPING_MS);
        };

        const begin = () => lt.ask("tagging-start", order()).then((answer) => {
            status = { ...answer, state: "busy" }; // a few images may be done by now
            take(answer);
        }).catch((problem) => {
            part("told").textContent = problem.message;
        });
        const stop = () => lt.ask("tagging-stop").then(take).catch(lt.tell);

        // --- how far it is ----------------------------------------------------------------------------
        function take(answer) {
            const wasBusy = isBusy();
            status = answer;
            draw();
            clearTimeout(timer);
            if (isBusy()) timer = setTimeout(() => lt.ask("tagging-status").then(take).catch(() => take({ ...status })), POLL_MS);
            else if (wasBusy) panel.refresh();
        }

        function draw() {
            const bar = part("bar");
            bar.hidden = !isBusy();
            bar.classList.toggle("lt-unknown", !status.total);
            bar.firstChild.style.width = status.total ? `${(100 * status.done) / status.total}%` : "";
            part("start").hidden = isBusy();
            part("stop").hidden = !isBusy();
            const place = status.folder ? status.folder.replace(/[\\/]+$/, "").split(/[\\/]/).pop() : "";
            part("state").textContent = isBusy() ? `${place}, by ${status.tagger}: ${status.line}` : [ENDS[status.state], status.message].filter(Boolean).join(" ");
            part("state").className = `lt-a-state ${status.state === "failed" ? "lt-bad" : "lt-faint"}`;
            part("told").hidden = isBusy();
            const skipped = status.skipped || [];
            const more = (status.skipped_count || 0) - skipped.length;
            part("skipped").replaceChildren(...skipped.map((one) => make("li", {}, make("p", {}, make("b", {}, one.name), ` is skipped: ${one.reason}`))),
                ...(more > 0 ? [make("li", {}, make("p", {}, `and ${whole(more)} more`))] : []));
        }

        // --- the card ---------------------------------------------------------------------------------
        const button = (label, name, title, work) => {
            const made = make("button", { type: "button", className: `lt-small lt-a-${name}`, title }, label);
            made.onclick = work;
            return made;
        };
        const tagger = make("select", { className: "lt-a-tagger", title: "Who describes the images", "aria-label": "Tagger" });
        tagger.onchange = changed;
        const scope = lt.captionScopes("lt-a-scope", "Which images are tagged", "images");
        scope.onchange = previewSoon;
        card = make("details", { className: "lt-card lt-skipped lt-auto" }, make("summary", { title: "DeepBooru, BLIP or a WD14 model of yours" }, "Auto-tag", make("span", {}, "let a tagger write captions")), make("div", { className: "lt-a-body" },
            make("div", { className: "lt-tool lt-c-order" }, tagger, scope,
                button("Tag", "start", "Look at the images one after the other and write their captions at the end; Undo takes all of them back.", begin),
                button("Stop", "stop", "End after the present image; what is tagged by then is written.", stop)),
            make("div", { className: "lt-a-fields" }, ...fields.map(box)),
            make("p", { className: "lt-a-note lt-faint" }), make("p", { className: "lt-a-told", role: "status" }),
            make("div", { className: "lt-a-bar lt-progress" }, make("span")), make("p", { className: "lt-a-state lt-faint", role: "status" }),
            make("ul", { className: "lt-a-skipped lt-c-lines" })));
        card.ontoggle = () => card.open && offer();
        panel.place.addEventListener("lt-shown", previewSoon);
        panel.place.addEventListener("lt-words", () => {
            inputs.trigger.value = (panel.place.words || {}).trigger || "";
            previewSoon();
        });
        draw();
        return card;
    };
})();
