// Forms are sent as JSON: "{name}" in an address is filled from the field of that name, and the
// remaining fields are the body (or the query, where there is no body). Afterwards the page is
// read anew, and the records of that request are marked. What people see and have chosen stays:
// focus, scrolled lists, opened records.
"use strict";

const STAYS = 12000; // milliseconds that an answer is shown, if nobody is at it
const answer = document.getElementById("answer");
let leaving = 0;

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

function hide() {
  clearTimeout(leaving);
  answer.hidden = true;
}

function hideLater() {
  clearTimeout(leaving);
  leaving = setTimeout(() => (answer.matches(":hover, :focus-within") ? hideLater() : hide()), STAYS);
}

function show(title, failed, requestId, text) {
  answer.replaceChildren();
  const close = Object.assign(document.createElement("button"), { textContent: "Close", title: "or Escape" });
  const place = placeOf(document.activeElement);
  close.onclick = () => { hide(); focusOn(place); };
  const line = Object.assign(document.createElement("strong"), { textContent: title });
  line.className = failed ? "bad" : "good";
  const id = Object.assign(document.createElement("div"), { textContent: requestId ? "X-Request-ID " + requestId : "" });
  id.className = "quiet mono";
  answer.append(close, line, id, Object.assign(document.createElement("pre"), { textContent: text }));
  answer.hidden = false;
  hideLater();
}

// Where the focus is, in words that hold for the page that is read anew.
function placeOf(element) {
  if (element.form) return [element.form.dataset.key, element.name];
  const record = element.closest("main .record");
  return record ? [record.dataset.sequence] : null;
}

function focusOn(place) {
  if (place === null) return;
  const [key, name] = place;
  const form = [...document.forms].find((one) => one.dataset.key === key);
  const found = form
    ? [...form.elements].find((one) => one.name === name)
    : document.querySelector(`.record[data-sequence="${key}"] summary`);
  (found || document.querySelector("main")).focus({ preventScroll: true });
}

// The tools of the server that is chosen, and arguments that the tool takes.
function offerTools(form) {
  const tools = JSON.parse(form.elements.server.selectedOptions[0].dataset.tools || "{}");
  form.elements.tool.replaceChildren(...Object.keys(tools).map((name) => new Option(name)));
}

function offerArguments(form) {
  const tools = JSON.parse(form.elements.server.selectedOptions[0].dataset.tools || "{}");
  form.elements.arguments.value = tools[form.elements.tool.value] || "{}";
}

function keepChoices(fresh) {
  const choices = {};
  const keyOf = (field) => [field.form.dataset.key, field.name];
  for (const form of document.forms) for (const field of form.elements) {
    if (field.name && field.type !== "password") choices[keyOf(field)] = field.value;
  }
  for (const form of fresh.forms) for (const field of form.elements) {
    const value = choices[keyOf(field)];
    const fits = field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value);
    if (value !== undefined && fits) field.value = value;
    if (field.name === "server" && form.elements.tool) offerTools(form);
    if (field.name === "arguments" && form.elements.tool.value !== choices[keyOf(form.elements.tool)]) offerArguments(form);
  }
}

async function refresh(requestId) {
  const fresh = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
  keepChoices(fresh);
  const place = placeOf(document.activeElement);
  const scrolled = [...document.querySelectorAll(".long")].map((list) => list.scrollTop);
  const opened = [...document.querySelectorAll(".record[open]")].map((record) => record.dataset.sequence);
  for (const part of ["header", "main"]) document.querySelector(part).replaceWith(fresh.querySelector(part));
  document.querySelectorAll(".long").forEach((list, number) => { list.scrollTop = scrolled[number] || 0; });
  for (const record of document.querySelectorAll(".record")) {
    record.classList.toggle("fresh", record.dataset.request === requestId);
    record.open = opened.includes(record.dataset.sequence);
  }
  focusOn(place);
}

document.addEventListener("change", ({ target }) => {
  if (!target.form || !target.form.elements.tool) return;
  if (target.name === "server") offerTools(target.form);
  if (target.name === "server" || target.name === "tool") offerArguments(target.form);
});

document.addEventListener("click", ({ target }) => {
  if (target.closest("summary")) hide();
});

document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape") hide();
});

document.addEventListener("submit", async (event) => {
  event.preventDefault();
  hide();
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
