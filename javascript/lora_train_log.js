/* The log: each event of a run as a sentence. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    const numbers = (values) => Object.entries(values)
        .map(([name, value]) => `${name.replace(/_/g, " ")} ${value === null ? "–" : Number(value.toPrecision(3))}`)
        .join(", ");

    const SENTENCES = {
        PhaseStarted: (e) => `${lt.PHASES[e.phase]}${e.total ? ` (${lt.whole(e.total)})` : ""}`,
        PhaseEnded: (e) => `${lt.PHASES[e.phase]}: done in ${e.seconds < 10 ? e.seconds.toFixed(1) + " s" : lt.clock(e.seconds)}`,
        Planned: (e) => `${lt.whole(e.images)} images` +
            (e.regularisation_images ? ` and ${lt.whole(e.regularisation_images)} for regularisation` : "") +
            `: ${lt.whole(e.epochs)} epochs of ${lt.whole(e.steps_per_epoch)} steps, ${lt.whole(e.total_steps)} in all`,
        Workload: (e) => `${(e.pixels_per_step / 1e6).toFixed(2)} megapixels a step on ${e.device === "cpu" ? "the processor" : e.device}`,
        EpochDone: (e) => `Epoch ${e.epoch} ended at step ${lt.whole(e.step)}` +
            (e.mean_loss === null ? "" : `, mean loss ${e.mean_loss.toFixed(4)}`),
        LoraWritten: (e) => `Written: ${lt.fileName(e.path)}`,
        LoraRemoved: (e) => `Removed, as only the last files are kept: ${lt.fileName(e.path)}`,
        StateSaved: (e) => `Kept: the run can go on from step ${lt.whole(e.step)}`,
        Resumed: (e) => `Goes on after step ${lt.whole(e.step)}`,
        GridDrawn: () => "The grid is drawn",
        Measured: (e) => `${e.epoch ? `Epoch ${e.epoch}` : "Without LoRA"}: ${numbers(e.values)}`,
        Noted: (e) => (e.where ? `${e.where}: ` : "") + e.message,
        StateChanged: (e) => lt.STATES[e.state] + (e.message ? `. ${e.message}` : ""),
    };
    const level = (e) => (e.kind === "Noted" ? e.level : e.kind === "StateChanged" && e.state === "failed" ? "error" : "");
    const timeOfDay = (e) => (e.time ? new Date(e.time * 1000).toTimeString().slice(0, 8) : "");

    lt.drawLog = (place, run) => {
        if (!place.firstChild || place.dataset.run !== String(run.id)) {
            const copy = make("button", { className: "lt-small", type: "button", title: "The whole log as text, for a question in a forum" }, "Copy");
            copy.onclick = () => lt.copy(logText(run), copy);
            place.replaceChildren(make("ol", { className: "lt-log" }), copy);
            Object.assign(place.dataset, { run: String(run.id), told: "0" });
        }
        const list = place.firstChild;
        const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
        const fresh = run.events.slice(Number(place.dataset.told)).filter((event) => SENTENCES[event.kind]);
        for (const event of fresh) {
            list.append(make("li", { className: level(event) ? `lt-${level(event)}` : "" },
                make("time", {}, timeOfDay(event)), make("span", {}, SENTENCES[event.kind](event))));
        }
        place.dataset.told = String(run.events.length);
        if (fresh.length && isAtEnd) list.scrollTop = list.scrollHeight;
    };

    const logText = (run) => run.events.filter((event) => SENTENCES[event.kind])
        .map((event) => `${timeOfDay(event)} ${SENTENCES[event.kind](event)}`).join("\n");
})();
