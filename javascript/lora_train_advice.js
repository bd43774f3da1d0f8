/* The advice of a run: which epoch to use at which strength, why, and what to change next time. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const POLL_MS = 600;

    const sentence = (advice) => (advice.epoch ? `Use epoch ${advice.epoch} at strength ${Number(advice.strength.toPrecision(3))}` : "No epoch of this run is good");

    /** The advice as a card, or the button that asks for it; `shown` is like the answer of runs-show, `redraw` shows the run again. */
    lt.adviceCard = (shown, redraw) => {
        const card = make("div", { className: "lt-advice" });
        const advice = shown.advice;
        if (advice) {
            const heading = make("h4", {}, sentence(advice), ...(advice.is_sure ? [] : [make("span", { className: "lt-tag" }, "unsure")]));
            const list = (lines, className) => make("ul", { className }, ...lines.map((line) => make("li", {}, line)));
            card.append(heading, list(advice.reasons, ""), ...(advice.remedies.length ? [make("b", {}, "Next time"), list(advice.remedies, "")] : []));
        }
        const message = make("span", { className: "lt-faint", role: "status" });
        const tools = make("div", { className: "lt-toolbar" });
        const file = advice && shown.files.find((one) => one.epoch === advice.epoch && !one.missing);
        if (file) {
            tools.append(...lt.useButtons(shown.run, file.path, shown.triggers, advice.strength),
                lt.smallButton("Write to the card", "Set the preferred weight of this epoch's LoRA card, add the reasons to its notes, and give it this image if it has none", async () => {
                    const answer = await lt.request("advice-card", { run: shown.run }).catch(lt.notify);
                    if (answer) message.textContent = `Written to the card of ${answer.name}.`;
                }));
        }
        if (!advice && shown.files.some((one) => one.epoch && !one.missing)) {
            tools.append(lt.smallButton("Find the best epoch", "Compare the samples of all epochs with the training images and with those without LoRA, and draw the best epochs at other strengths",
                () => test(shown.run, message, redraw)));
        }
        card.append(tools, message);
        return tools.firstChild || advice ? card : make("div", {});
    };

    async function test(run, message, redraw) {
        const stop = lt.smallButton("Stop", "What was drawn is kept", () => lt.request("advice-stop").catch(lt.notify));
        try {
            let status = await lt.request("advice-start", { run });
            message.after(stop);
            while (status.state === "busy") {
                message.textContent = status.line;
                await new Promise((done) => setTimeout(done, POLL_MS));
                status = await lt.request("advice-status");
            }
            if (status.state === "failed") throw new Error(status.message);
            message.textContent = status.state === "stopped" ? "Stopped. What was drawn is kept." : "";
            if (status.state === "done") redraw();
        } catch (problem) {
            message.textContent = "";
            lt.notify(problem);
        } finally {
            stop.remove();
        }
    }
})();
