/* The log: the events of a run as sentences. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    const numbers = (values) => Object.entries(values)
        .map(([name, value]) => `${lt.measureTitle(name).toLowerCase()} ${value === null ? "–" : Number(value.toPrecision(3))}`)
        .join(", ");

    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

    const SENTENCES = {
        PhaseStarted: (e) => `${lt.phaseTitle(e.phase)}${e.total ? ` (${lt.whole(e.total)})` : ""}`,
        PhaseEnded: (e) => `${lt.phaseTitle(e.phase)}: done in ${e.seconds < 10 ? e.seconds.toFixed(1) + " s" : lt.clock(e.seconds)}`,
        Planned: (e) => lt.count(e.images, "image") +
            (e.regularisation_images ? ` and ${lt.count(e.regularisation_images, "regularisation image")}` : "") +
            `: ${lt.count(e.epochs, "epoch")} of ${lt.count(e.steps_per_epoch, "step")}, ${lt.whole(e.total_steps)} in total`,
        Workload: (e) => `${(e.pixels_per_step / 1e6).toFixed(2)} megapixels per step on ${e.device === "cpu" ? "the CPU" : e.device}`,
        EpochDone: (e) => `Epoch ${e.epoch} ended at step ${lt.whole(e.step)}` +
            (e.mean_loss === null ? "" : `, mean loss ${e.mean_loss.toFixed(4)}`),
        LoraWritten: (e) => `Saved ${lt.fileName(e.path)}`,
        LoraRemoved: (e) => `Deleted ${lt.fileName(e.path)}: only the latest files are kept`,
        StateSaved: (e) => `Training state saved: the run can be resumed from step ${lt.whole(e.step)}`,
        Resumed: (e) => `Resumed after step ${lt.whole(e.step)}`,
        GridDrawn: () => "Grid drawn",
        Measured: (e) => `${e.epoch ? `Epoch ${e.epoch}` : "Without LoRA"}: ${numbers(e.values)}`,
        ImageLosses: (e) => {
            const [path, loss] = Object.entries(e.losses).sort(([, a], [, b]) => b - a)[0];
            return `Highest steady loss of an image: ${lt.fileName(path)} (${loss.toFixed(3)})`;
        },
        ImagesRated: (e) => `Loss of ${lt.count(e.total, "image")} measured. Standing out: ` +
            (Object.keys(e.standing_out).map(lt.fileName).join(", ") || "none"),
        TagsRated: (e) => `${lt.count(e.total, "tag")} measured: ${Object.entries(e.verdicts).map(([verdict, tags]) => `${tags} ${verdict}`).join(", ")}`,
        SampleMatched: (e) => (e.is_copy ? `${lt.fileName(e.sample)} is nearly a copy of the training image ${lt.fileName(e.image)}` : ""),
        StrengthTested: (e) => `Epoch ${e.epoch} at strength ${e.strength}: likeness ${lt.fixed(mean(e.likeness))}` +
            (e.change.length ? `, control images changed by ${Math.round(100 * mean(e.change))}%` : ""),
        Advised: (e) => [e.epoch ? `Use epoch ${e.epoch} at strength ${e.strength}.` : "No epoch of this run is good.", ...e.reasons, ...e.remedies].join(" "),
        Noted: (e) => e.text,
        StateChanged: (e) => lt.STATES[e.state] + (e.message ? `. ${e.message}` : ""),
    };
    const sentence = (e) => (SENTENCES[e.kind] ? SENTENCES[e.kind](e) : "");
    const level = (e) => (e.kind === "Noted" ? e.level : e.is_copy ? "warning" : e.kind === "StateChanged" && e.state === "failed" ? "error" : "");
    const timeOfDay = (e) => (e.time ? new Date(e.time * 1000).toTimeString().slice(0, 8) : "");

    lt.drawLog = (container, run) => {
        if (!lt.pageData()) return; // the titles of phases
        if (!container.firstChild || container.dataset.run !== String(run.id)) {
            const copy = make("button", { className: "lt-small", type: "button", title: "Copy the log as text, for example for a bug report" }, "Copy");
            copy.onclick = () => lt.copy(logText(run), copy);
            container.replaceChildren(make("ol", { className: "lt-log" }), copy);
            Object.assign(container.dataset, { run: String(run.id), shown: "0" });
        }
        const list = container.firstChild;
        const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
        const added = run.events.slice(Number(container.dataset.shown)).filter(sentence);
        for (const event of added) {
            list.append(make("li", { className: level(event) ? `lt-${level(event)}` : "" },
                make("time", {}, timeOfDay(event)), make("span", {}, sentence(event))));
        }
        container.dataset.shown = String(run.events.length);
        if (added.length && isAtEnd) list.scrollTop = list.scrollHeight;
    };

    const logText = (run) => run.events.filter(sentence)
        .map((event) => `${timeOfDay(event)} ${sentence(event)}`).join("\n");
})();
