// Runs the model beside the page, so that the page stays alive. A message in is a picture, a message out its translation.

import * as ort from "./ort/ort.wasm.bundle.min.mjs";

ort.env.wasm.wasmPaths = { wasm: new URL("ort/ort-wasm-simd-threaded.wasm", self.location.href).href };
// several threads need headers that a plain server does not send
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

let session = null;

/**
 * {load: file} -> {}; {pixels, shape} -> {pixels, seconds}, both (1, C, H, W) of bytes; {failed: reason} instead.
 * An answer has the `id` of its message.
 */
self.onmessage = async ({ data }) => {
  try {
    if (data.load) {
      session = await ort.InferenceSession.create(data.load, { executionProviders: ["wasm"] });
      return self.postMessage({ id: data.id });
    }
    const begin = performance.now();
    const image = new ort.Tensor("uint8", data.pixels, data.shape);
    const { translation } = await session.run({ image }, ["translation"]);
    const pixels = new Uint8Array(translation.data);
    self.postMessage({ id: data.id, pixels, seconds: (performance.now() - begin) / 1000 }, [pixels.buffer]);
  } catch (error) {
    self.postMessage({ id: data.id, failed: String(error?.message ?? error) });
  }
};
