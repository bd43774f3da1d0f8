/* The strip above all panels and the tiles of the Monitor: state, progress and speed of the run. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    const REQUESTS = { pause: "pause", save: "save a file", sample: "draw samples" };
    const OBSTACLES = { train: "this step", samples: "these samples", grid: "the grid", evaluate: "this measurement" };

    /** What a pause or a stop waits for: sampling ends within a step, an image of the webui cannot be paused. */
    function unitInWork(status, isStop) {
        if (status.phase !== "samples") return OBSTACLES[status.phase] || "this part";
        return !isStop && status.config.webui_sampler ? "this image" : "this sampling step";
    }

    /** What was asked for and has not happened yet, and what it waits for. */
    function waitingFor(status) {
        const words = (isPause) => status.pending.filter((name) => (name === "pause") === isPause && name in REQUESTS).map((name) => REQUESTS[name]).join(" and ");
        const isAway = status.state === "waiting";
        const say = (asked, unit) => (asked ? `will ${asked} ${isAway ? "as soon as the model is back" : `after ${unit}`}` : "");
        const units = [unitInWork(status, false), OBSTACLES[status.phase] || "this part"];
        if (isAway || units[0] === units[1]) return say([words(true), words(false)].filter(Boolean).join(" and "), units[0]);
        return [say(words(true), units[0]), say(words(false), units[1])].filter(Boolean).join(", ");
    }

    /** Seconds until the run ends, at the speed of its latest step and with the rest of what interrupts it now. */
    function secondsLeft(status) {
        if (!lt.LIVE.includes(status.state)) return null;
        if (!status.step_seconds || !status.total_steps) return status.phase === "train" ? status.eta_seconds : null;
        const interruption = status.phase === "train" ? 0 : status.eta_seconds || 0;
        return (status.total_steps - status.step) * status.step_seconds + interruption;
    }

    function headline(status) {
        if (!status || status.state === "idle") {
            const isPlanned = document.querySelector("#lora_train_root [data-lt-scan]") !== null;
            return isPlanned ? "The plan is ready. Start training in the Train panel." : "Choose images, check the plan, start.";
        }
        if (!lt.LIVE.includes(status.state)) return status.message;
        if (status.state === "stopping") return `Stopping after ${unitInWork(status, true)}.`;
        const phase = lt.phaseTitle(status.phase) || "Preparing";
        const facts = [phase];
        if (status.progress) facts.push(status.progress);
        else if (status.total) facts.push(`${lt.whole(status.done)} of ${lt.whole(status.total)}`);
        if (status.phase !== "train" && status.epoch) facts.push(`after epoch ${status.epoch}`);
        if (status.pending && status.pending.length) facts.push(waitingFor(status));
        if (status.phase === "train" && status.epochs) facts.push(`epoch ${Math.max(1, status.epoch)} of ${status.epochs}`);
        return facts.filter(Boolean).join(" · ");
    }

    lt.drawStrip = (container, run, root) => {
        const status = run.status || { state: "idle" };
        if (!container.firstChild) {
            container.append(
                make("div", { className: "lt-strip" },
                    make("span", { className: "lt-pill" }),
                    make("span", { className: "lt-headline" }),
                    make("span", { className: "lt-offer" }),
                    make("span", { className: "lt-results" }, lt.smallButton("Open the results", "Files, samples and grid of this run", () => lt.openRun(container.run))),
                    make("span", { className: "lt-report" }, lt.reportButton(() => container.run)),
                    make("span", { className: "lt-eta" })),
                make("div", { className: "lt-progress", role: "progressbar" }, make("span")),
            );
        }
        container.run = run.id;
        container.querySelector(".lt-report").hidden = status.state !== "failed";
        drawOffer(container, status);
        drawInterrupted(container, status.interrupted || "");
        const isLive = lt.LIVE.includes(status.state);
        const share = status.state === "finished" ? 1 : isLive ? status.share || 0 : 0;
        const offline = root.dataset.ltOffline === "yes";
        container.querySelector(".lt-pill").textContent = offline ? "No connection" : lt.STATES[status.state];
        container.querySelector(".lt-headline").textContent = offline
            ? "The server is not responding. A running training continues there."
            : headline(status);
        const remaining = status.state === "running" ? secondsLeft(status) : null;
        container.querySelector(".lt-eta").textContent = remaining === null || remaining === undefined ? "" : `${lt.clock(remaining)} left`;
        const bar = container.querySelector(".lt-progress");
        bar.firstChild.style.width = `${(100 * share).toFixed(2)}%`;
        bar.classList.toggle("lt-unknown", isLive && !status.total && status.state === "running");
        bar.setAttribute("aria-valuenow", Math.round(100 * share));
    };

    /** What can be done about the run's message: a button, and for some a question first. */
    function drawOffer(container, status) {
        const offer = status.offer || {};
        const place = container.querySelector(".lt-offer");
        const mark = JSON.stringify([offer, status.run]);
        if (place.dataset.mark === mark) return;
        place.dataset.mark = mark;
        container.querySelectorAll(".lt-confirm").forEach((old) => old.remove());
        if (!offer.action) return void place.replaceChildren();
        const button = lt.smallButton;
        const act = () => {
            if (offer.action === "runs-continue-from") return lt.applyChange(offer.action, { run: status.run });
            return lt.request(offer.action, { run: status.run }).then(lt.pollOften).catch(lt.notify);
        };
        const ask = () => {
            container.querySelectorAll(".lt-confirm").forEach((old) => old.remove());
            const box = make("div", { className: "lt-confirm", role: "alertdialog", "aria-label": offer.label }, make("p", {}, offer.confirm));
            box.append(button("Train on this model", "Continue on the model in use", () => (box.remove(), act())),
                button("Cancel", "Change nothing", () => box.remove()));
            container.append(box);
            box.querySelector("button:last-of-type").focus();
        };
        place.replaceChildren(button(offer.label, offer.confirm || "Fill in the form for a new run that begins with what this one has learnt; nothing starts", offer.confirm ? ask : act));
    }

    /** After a restart: what was interrupted, and one click that continues it, run and queue. */
    function drawInterrupted(container, sentence) {
        const old = container.querySelector(".lt-banner");
        if ((old ? old.dataset.sentence : "") === sentence) return;
        if (old) old.remove();
        if (!sentence) return;
        const act = (name) => () => lt.request(name).then(lt.pollOften).catch(lt.notify);
        const banner = make("div", { className: "lt-banner", role: "status" }, make("span", {}, sentence),
            lt.smallButton("Continue", "Resume the run where it was interrupted; the queue follows", act("interrupted-resume")),
            lt.smallButton("Not now", "The run stays in Results, the queue stays as it is", act("interrupted-dismiss")));
        banner.dataset.sentence = sentence;
        container.append(banner);
    }

    lt.drawFigures = (container, run) => {
        const status = run.status;
        if (!status || !run.id) return;
        const smooth = lt.smoothed(run.loss, lt.smoothing());
        const rates = Object.entries(run.rates).map(([group, points]) => [group.replace(/_/g, " ").replace("unet", "UNet"), points]);
        const figures = [
            ["Epoch", status.epochs ? `${lt.whole(status.epoch)} / ${lt.whole(status.epochs)}` : "–"],
            ["Step", status.total_steps ? `${lt.whole(status.step)} / ${lt.whole(status.total_steps)}` : "–"],
            ["Loss", smooth.length ? smooth[smooth.length - 1].toFixed(4) : "–"],
            speed(status.step_seconds),
            ["Time left", lt.clock(secondsLeft(status))],
            ...normFigures(status.layer_norms),
            ...(status.memory ? [["GPU memory (GiB)", `${status.memory.used_gib.toFixed(1)} / ${status.memory.total_gib.toFixed(0)}`]] : []),
            ...rates.map(([group, points]) => [`LR ${group}`, lt.rate(points[points.length - 1][1]), points]),
        ];
        container.replaceChildren(make("div", { className: "lt-tiles" }, ...figures.map(([name, value, points]) =>
            make("div", { className: "lt-tile" }, make("b", {}, value), make("span", {}, name),
                points ? lt.sparkline(points) : null))));
    };

    /** What max norm did in the latest step, as in kohya's progress bar. */
    const normFigures = (norms) => (norms ? [
        ["Keys scaled", lt.whole(norms[0])], ["Average key norm", norms[1].toFixed(3)], ["Largest key norm", norms[2].toFixed(3)]] : []);

    const speed = (seconds) => {
        if (!seconds) return ["Steps / second", "–"];
        const perSecond = 1 / seconds;
        if (perSecond < 1) return ["Seconds / step", seconds.toFixed(1)];
        return ["Steps / second", perSecond.toFixed(perSecond < 10 ? 1 : 0)];
    };
})();
