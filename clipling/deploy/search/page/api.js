// Requests to the service. An error is an Error whose message can be shown.

const pause = (seconds, signal) => new Promise((done, stopped) => {
  setTimeout(done, 1000 * seconds);
  signal?.addEventListener("abort", () => stopped(signal.reason), { once: true });
});

export async function ask(url, { signal, ...options } = {}, tries = 3) {
  let answer;
  try {
    answer = await fetch(url, { signal, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The search service does not answer. Is it running?");
  }
  if (answer.status === 503 && tries > 1) {
    await pause(Number(answer.headers.get("retry-after")) || 1, signal);
    return ask(url, { signal, ...options }, tries - 1);
  }
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(told.detail ?? `The search service answered ${answer.status}.`), { status: answer.status });
  return told;
}

const MOST = 25 * 2 ** 20 - 4096;

export async function upload(file) {
  if (file.size > MOST) throw new Error(`${file.name || "The picture"} has ${Math.round(file.size / 2 ** 20)} MB; at most 25 MB can be searched by.`);
  const form = new FormData();
  form.append("file", file, "picture");
  return ask("/api/uploads", { method: "POST", body: form });
}
