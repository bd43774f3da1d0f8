/* Cropping by hand in the Dataset panel: a frame of the bucket's shape over the image, moved and sized. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const BLURRED = 1.25; // as the plan's warning
    const percent = (share) => `${(100 * share).toFixed(0)} %`;
    const shape = ([width, height]) => `${width} × ${height}`;

    /** The largest frame of a bucket's shape, made smaller by `zoom`, at a place between 0 (left, top) and 1. */
    function frameOf(image, bucket, zoom, across, down) {
        const unit = Math.min(image.width / bucket[0], image.height / bucket[1]) / zoom;
        const width = Math.min(image.width, Math.round(bucket[0] * unit));
        const height = Math.min(image.height, Math.round(bucket[1] * unit));
        return [Math.round((image.width - width) * across), Math.round((image.height - height) * down), width, height];
    }

    const slider = (name, title, { low, high, value }) =>
        make("input", { type: "range", min: low, max: high, step: 0.005, value, className: `lt-k-${name}`, title, "aria-label": title });

    function editor(image, close) {
        const [left, top, width, height] = image.frame;
        const spare = (whole, part, start) => (whole > part ? start / (whole - part) : 0.5);
        const across = slider("across", "Left – right", { low: 0, high: 1, value: spare(image.width, width, left) });
        const down = slider("down", "Up – down", { low: 0, high: 1, value: spare(image.height, height, top) });
        const [, , widest, highest] = frameOf(image, image.buckets[0], 1, 0, 0);
        const most = Math.max(1, Math.min(widest, highest) / image.least);
        const zoom = slider("zoom", "Zoom: 1 is the largest frame", { low: 1, high: Math.min(8, most), value: 1 });
        const buckets = make("select", { title: "The shape of the frame: the image's own bucket first", "aria-label": "Bucket" },
            ...image.buckets.map((size, n) => make("option", { value: n }, n ? shape(size) : `${shape(size)} (its bucket)`)));
        const frame = make("i", { className: "lt-k-frame" });
        const stage = make("div", { className: "lt-k-stage" }, make("img", { src: `${lt.url(`image/${image.token}`)}?${Date.now()}`, alt: image.name, draggable: false }), frame);
        const told = make("p", { className: "lt-k-told lt-faint" });
        const bucket = () => image.buckets[Number(buckets.value)];
        const now = () => frameOf(image, bucket(), Number(zoom.value), Number(across.value), Number(down.value));

        function draw() {
            const [x, y, w, h] = now();
            const place = { left: x / image.width, top: y / image.height, width: w / image.width, height: h / image.height };
            for (const [side, share] of Object.entries(place)) frame.style[side] = `${100 * share}%`;
            const scale = Math.max(bucket()[0] / w, bucket()[1] / h);
            const blurred = scale > BLURRED ? ": its blur is learnt" : "";
            const resized = scale > 1.005 ? `enlarged ${scale.toFixed(2)} times${blurred}` : `shrunk to ${percent(scale)}`;
            told.textContent = `Frame ${w} × ${h} px of ${image.width} × ${image.height}, ${percent(1 - (w * h) / (image.width * image.height))} is left out; ${resized}.`;
            told.classList.toggle("lt-k-blurred", scale > BLURRED);
        }

        function drag(event) {
            if (event.type === "pointermove" && !event.buttons) return;
            const box = stage.getBoundingClientRect();
            const [, , w, h] = now();
            const at = (share, part, whole) => (whole > part ? Math.min(1, Math.max(0, (share * whole - part / 2) / (whole - part))) : 0.5);
            across.value = at((event.clientX - box.left) / box.width, w, image.width);
            down.value = at((event.clientY - box.top) / box.height, h, image.height);
            event.preventDefault();
            draw();
        }
        stage.onpointerdown = stage.onpointermove = drag;
        for (const control of [across, down, zoom, buckets]) control.oninput = draw;
        draw();
        const button = (label, name, title, onclick) => make("button", { type: "button", className: `lt-small lt-k-${name}`, title, onclick }, label);
        const field = (name, control) => make("label", { className: "lt-field lt-tool" }, make("span", {}, name), control);
        return make("div", { className: "lt-card lt-crop" },
            make("div", { className: "lt-bar-row" },
                make("h3", { className: "lt-heading" }, "Crop", make("span", {}, `${image.name}: training leaves ${percent(image.lost)} of it out`)),
                button("Close", "close", "Leave the image as it is", close)),
            make("div", { className: "lt-k-body" }, stage,
                make("div", { className: "lt-k-side" },
                    field("Bucket", buckets), field("Left – right", across), field("Up – down", down), field("Zoom", zoom), told,
                    make("div", { className: "lt-k-buttons" },
                        button("Write crop", "write", "Cut the file, and its mask, to the frame. The original is kept beside the data folder.", () => finish("write", { token: image.token, frame: now() }, close)),
                        image.undo ? button("Undo the last crop", "undo", "Put back the image that was cropped last", () => finish("undo", {}, close)) : null))));
    }

    async function finish(name, values, close) {
        const answer = await lt.ask(`crop-${name}`, values).catch(lt.tell);
        if (!answer) return;
        lt.tell(answer.told);
        close();
        lt.press("look"); // the file is another one now
    }

    /** Opens the editor for an image above the gallery in `place`. */
    lt.crop = async (place, token) => {
        const image = await lt.ask("crop-look", { token }).catch(lt.tell);
        if (!image) return;
        show(place, image);
        place.querySelector(".lt-crop").scrollIntoView({ block: "nearest" });
    };

    /** After a new look: the editor that is open stays, is made anew if its image is another one now, goes with it. */
    lt.cropAgain = async (place) => {
        const box = place.querySelector(".lt-crop");
        if (!box) return;
        const image = await lt.ask("crop-look", { token: box.image.token }).catch(() => null);
        if (!box.isConnected) return; // closed, or another one was opened
        if (!image) box.remove();
        else if (JSON.stringify(image) !== JSON.stringify(box.image)) show(place, image);
    };

    function show(place, image) {
        place.querySelectorAll(".lt-crop").forEach((old) => old.remove());
        const box = editor(image, () => box.remove());
        box.image = image;
        place.prepend(box);
    }
})();
