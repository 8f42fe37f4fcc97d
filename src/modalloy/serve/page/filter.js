// Conditions on what the index knows of its pictures besides what they show.

import { byId, make } from "./dom.js";

const COMPARISONS = {
  text: [["contains", "contains"], ["=", "is"], ["!=", "isn't"]],
  number: [[">=", "at least"], ["<=", "at most"], ["=", "is"], ["!=", "isn't"], [">", "more than"], ["<", "less than"]],
  truth: [["=", "is"]],
};
const SIGNS = { ">=": "≥", "<=": "≤", "!=": "≠" };
// What is found is chosen elsewhere, and these say nothing to a reader.
const HIDDEN = ["modality", "picture_id"];

/** A condition as a reader would write it. */
export const describeCondition = ({ field, comparison, value }) => `${field} ${SIGNS[comparison] ?? comparison} ${value}`;

/** Makes the form that adds a condition, by the fields of the index. */
export function setUpFilter(page) {
  const fields = Object.entries(page.about.fields).filter(([name]) => !HIDDEN.includes(name));
  const field = make("select", { id: "field" }, ...fields.map(([name]) => make("option", { value: name }, name)));
  const rest = make("span", { class: "rest" });
  const follow = () => rest.replaceChildren(...valueInputs(page.about.fields[field.value]));
  field.addEventListener("change", follow);
  follow();
  const form = byId("filter");
  form.replaceChildren(make("label", { for: "field" }, "Only where"), field, rest, make("button", { type: "submit" }, "Add"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const value = byId("value").value.trim();
    if (!value) return byId("value").focus();
    const condition = { field: field.value, comparison: byId("comparison").value, value };
    page.ask({ where: [...page.state.where, condition] });
    if (byId("value").tagName === "INPUT") byId("value").value = "";
  });
}

function valueInputs(kind) {
  const options = (pairs) => pairs.map(([value, label]) => make("option", { value }, label));
  const value = kind === "truth"
    ? make("select", { id: "value", "aria-label": "Value" }, ...options([["true", "true"], ["false", "false"]]))
    : make("input", {
      id: "value", type: kind === "number" ? "number" : "text", step: kind === "number" ? "any" : null,
      "aria-label": "Value", placeholder: "value", autocomplete: "off",
    });
  return [make("select", { id: "comparison", "aria-label": "Comparison" }, ...options(COMPARISONS[kind])), value];
}
