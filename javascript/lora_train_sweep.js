/* Planning a sweep: settings and the values to try, for the form of the page or for a past run. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const small = (...all) => lt.smallButton(...all);
    const MOST = 3;
    const PREVIEW_MS = 400;
    let forms = 0;

    /** The button in the Train panel that opens the form of a sweep around the settings of the page. */
    lt.drawSweep = (container) => {
        if (container.firstChild) return;
        const open = small("Sweep…", "Train every combination of some values, one run after the other, and compare them", () => {
            if (container.querySelector(".lt-sweep")) return;
            container.append(sweepForm("", "learning_rate"));
        });
        container.append(open);
    };

    /** The form that repeats a past run with changes. */
    lt.repeatForm = (run, tag = "") => sweepForm(run, "leave_out_tags", tag);

    function sweepForm(run, first, firstValues = "") {
        const id = `lora_train_sweep_${(forms += 1)}`;
        const rows = make("div", { className: "lt-sweep-rows" });
        const preview = make("div", { className: "lt-sweep-preview", role: "status" });
        const start = small("Queue the runs", "Queue these runs; the first one starts if nothing is running", () => queue().catch(lt.notify));
        const more = small("+ Setting", `Vary another setting too; at most ${MOST}`, () => addRow(""));
        const explain = run
            ? "The run is repeated with these changes, with everything else as it was; the caption files and images are not touched. Several values make several runs."
            : "Every combination of the values becomes a run with the settings of this page. The runs share the model and everything that is encoded.";
        const form = make("div", { className: "lt-sweep lt-tool", role: "group", "aria-label": run ? "Repeat with a change" : "Sweep" },
            make("p", { className: "lt-faint" }, explain), make("datalist", { id }), rows, preview,
            make("div", { className: "lt-sweep-buttons" }, start, more, small("Cancel", "Queue nothing", () => form.remove())));
        const axes = () => [...rows.children].map((row) => [...row.querySelectorAll("input")].map((input) => input.value)).filter(([place, values]) => place.trim() || values.trim());
        let known = new Map();
        let timer = null;
        start.disabled = true;

        function addRow(place, tried = "") {
            if (rows.children.length >= MOST) return;
            const setting = make("input", { type: "text", value: place, placeholder: "Setting, such as rank", title: "The name of a setting", "aria-label": "Setting" });
            setting.setAttribute("list", id);
            const values = make("input", { type: "text", value: tried, title: "The values to try", "aria-label": "Values" });
            const remove = small("×", "Remove this setting", () => {
                row.remove();
                changed();
            });
            for (const input of [setting, values]) {
                input.dataset.ltOwn = "yes";
                input.oninput = changed;
            }
            const row = make("div", {}, setting, values, remove);
            rows.append(row);
            changed();
        }
        function changed() {
            for (const row of rows.children) {
                const [setting, values] = row.querySelectorAll("input");
                const found = known.get(setting.value.trim());
                values.placeholder = found ? `${found.example} (now: ${found.now})` : "Values to try";
            }
            more.disabled = rows.children.length >= MOST;
            start.disabled = true;
            clearTimeout(timer);
            timer = setTimeout(() => showPreview().catch((problem) => refuse(problem)), PREVIEW_MS);
        }
        function refuse(problem) {
            preview.replaceChildren(make("p", { className: "lt-bad" }, problem.message || String(problem)));
        }
        async function showPreview() {
            const asked = axes();
            if (!asked.some(([place, values]) => place.trim() && values.trim())) return preview.replaceChildren();
            const plan = await lt.request("sweep-preview", { run, axes: asked });
            if (JSON.stringify(asked) !== JSON.stringify(axes())) return null; // typed in the meantime
            const rest = plan.count - plan.names.length;
            const problems = plan.problems.map((one) => make("li", {}, make("b", {}, lt.placeLabel(one.where)), ` ${one.message}`));
            start.disabled = false;
            start.textContent = `Queue ${lt.count(plan.count, "run")}`;
            return preview.replaceChildren(
                make("p", {}, `${lt.count(plan.count, "run")}: ${plan.names.join(", ")}${rest > 0 ? ` and ${rest} more` : ""}.`),
                plan.same ? make("p", { className: "lt-faint" }, `${plan.same} is the run itself, which is not trained again.`) : "",
                problems.length ? make("ul", {}, ...problems) : "");
        }
        async function queue() {
            start.disabled = true;
            try {
                const answer = await lt.request("sweep-start", { run, axes: axes() });
                form.remove();
                lt.notify(answer.message);
                lt.pollOften();
                lt.openComparison(answer.sweep);
            } catch (problem) {
                start.disabled = false;
                refuse(problem);
            }
        }
        lt.request("sweep-settings", { run }).then(({ settings }) => {
            known = new Map(settings.map((one) => [one.place, one]));
            form.querySelector("datalist").append(...settings.map((one) => make("option", { value: one.place }, `${one.label}: ${one.now}`)));
            changed();
        }).catch(refuse);
        addRow(first, firstValues);
        return form;
    }
})();
