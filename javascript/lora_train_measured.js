/* A folded section of a past run with a list of what was measured in it, what stands out first: its images or its tags. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const small = (...all) => lt.smallButton(...all);
    const POLL_MS = 700;
    const AT_A_TIME = 12;

    /** The section; its content is fetched when it is unfolded. `kind` says what it lists:
        - `title` and `help` of the section, its `className`, and `actions`: the first part of the names of its requests;
        - `count(found)`: the list, how many there are in all, and how many stand out: {items, total, out};
        - `row(section, one)`: an item as an element; `noun`: what an item is called;
        - `measure`: label and tooltip of the button for a first measurement; `stop`: what Stop does. */
    lt.measuredSection = (run, kind) => {
        const body = make("div", { className: "lt-measured-body" });
        const section = make("details", { className: `lt-skipped lt-measured ${kind.className}` }, make("summary", { title: kind.help }, kind.title), body);
        Object.assign(section, { run, kind, body, shown: AT_A_TIME });
        section.ontoggle = () => section.open && !body.firstChild && load(section).catch(lt.notify);
        return section;
    };

    /** Measure what the section lists; `more` are further values of the request. */
    lt.startMeasuring = (section, more = {}) => lt.request(`${section.kind.actions}-start`, { run: section.run, ...more })
        .then((status) => follow(section, status)).catch(lt.notify);

    async function load(section) {
        const { run, kind } = section;
        const [found, status] = await Promise.all([lt.request(`${kind.actions}-show`, { run }), lt.request(`${kind.actions}-status`)]);
        section.found = found;
        draw(section);
        if (status.state === "busy" && status.run === run) follow(section, status);
    }

    function headOf({ kind, found }, { total, out }) {
        const nouns = `${kind.noun}s`;
        if (!total) return found.can_measure ? `The ${nouns} of this run have not been measured.` : `This run has no LoRA file to measure its ${nouns} with.`;
        const when = found.epoch ? `after epoch ${found.epoch}` : "with its newest file";
        return `${lt.count(total, kind.noun)}, measured ${when}: ${out ? `${lt.count(out, "stands", "stand")} out` : "none stands out"}.`;
    }

    function draw(section) {
        const { kind, shown } = section;
        const counted = kind.count(section.found);
        const { items, total } = counted;
        const measure = small(total ? "Measure again" : kind.measure[0], kind.measure[1], () => lt.startMeasuring(section));
        measure.disabled = !section.found.can_measure;
        const more = small("Show more", `Show up to ${AT_A_TIME} more`, () => {
            section.shown += AT_A_TIME;
            draw(section);
        });
        section.body.replaceChildren(
            make("div", { className: "lt-bar-row" }, make("p", { className: "lt-measured-head", role: "status" }, headOf(section, counted)), measure),
            make("ol", { className: "lt-measured-list" }, ...items.slice(0, shown).map((one) => kind.row(section, one))),
            ...(items.length > shown ? [more] : []),
            ...(total > items.length && items.length <= shown ? [make("p", { className: "lt-faint" }, `The other ${lt.whole(total - items.length)} stand out less.`)] : []));
    }

    function follow(section, status) {
        const { actions, stop } = section.kind;
        if (status.state !== "busy") {
            if (status.state === "failed") lt.notify(status.message);
            return void load(section).catch(lt.notify);
        }
        section.body.querySelector(".lt-bar-row").replaceChildren(make("p", { className: "lt-measured-head", role: "status" }, status.line),
            small("Stop", stop, () => lt.request(`${actions}-stop`).catch(lt.notify)));
        const again = () => section.isConnected && lt.request(`${actions}-status`).then((next) => follow(section, next)).catch(() => follow(section, status));
        setTimeout(again, POLL_MS);
        return undefined;
    }
})();
