// Forms are sent as JSON: "{name}" in an address is filled from the field of that name, and the
// remaining fields are the body (or the query, where there is no body). Afterwards the page is
// read anew, and the records of that request are marked.
"use strict";

const answer = document.getElementById("answer");

function valueOf(field) {
  if (field.dataset.kind === "json") return JSON.parse(field.value || "{}");
  if (field.dataset.kind === "boolean") return field.value === "true";
  return field.value;
}

function requestOf(form) {
  const values = {};
  for (const field of form.elements) if (field.name) values[field.name] = valueOf(field);
  let address = form.dataset.address.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    delete values[name];
    return encodeURIComponent(value);
  });
  const method = form.dataset.method;
  if (method === "GET" || method === "DELETE") {
    const query = new URLSearchParams(values).toString();
    return [address + (query ? "?" + query : ""), { method }];
  }
  const headers = { "content-type": "application/json" };
  return [address, { method, headers, body: JSON.stringify(values) }];
}

function show(title, failed, requestId, text) {
  answer.replaceChildren();
  const close = Object.assign(document.createElement("button"), { textContent: "✕", title: "close" });
  close.onclick = () => { answer.hidden = true; };
  const line = Object.assign(document.createElement("strong"), { textContent: title });
  line.className = failed ? "bad" : "good";
  const id = Object.assign(document.createElement("div"), { textContent: requestId ? "X-Request-ID " + requestId : "" });
  id.className = "quiet mono";
  answer.append(close, line, id, Object.assign(document.createElement("pre"), { textContent: text }));
  answer.hidden = false;
}

function keepChoices(fresh) {
  const choices = {};
  const each = (page, visit) => {
    for (const form of page.forms) for (const field of form.elements) {
      if (field.name && field.type !== "password") visit([form.dataset.method, form.dataset.address, field.name], field);
    }
  };
  each(document, (key, field) => { choices[key] = field.value; });
  each(fresh, (key, field) => {
    const fits = field.tagName !== "SELECT" || [...field.options].some((option) => option.value === choices[key]);
    if (key in choices && fits) field.value = choices[key];
  });
}

async function refresh(requestId) {
  const fresh = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  keepChoices(fresh);
  for (const part of ["header", "main"]) document.querySelector(part).replaceWith(fresh.querySelector(part));
  for (const record of document.querySelectorAll(".record")) {
    record.classList.toggle("fresh", record.dataset.request === requestId);
  }
}

document.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  let address, options;
  try {
    [address, options] = requestOf(form);
  } catch (error) {
    show("Arguments must be JSON", true, "", String(error));
    return;
  }
  const title = `${options.method} ${address}`;
  try {
    const response = await fetch(address, options);
    const body = await response.json();
    const requestId = response.headers.get("x-request-id");
    show(`${title} → ${response.status}`, !response.ok, requestId, JSON.stringify(body, null, 2));
    await refresh(requestId);
  } catch (error) {
    show(title, true, "", String(error));
  }
});
