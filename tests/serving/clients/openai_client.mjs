// OpenAI's client for JavaScript: argument 1 is the address, 2 the model, 3 the encoder.
import OpenAI from "openai";

const [url, model, encoder] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const talk = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "Hello." },
  { role: "assistant", content: "Hello to you." },
  { role: "user", content: "Where is my card?" },
];
const settings = { model, temperature: 0, max_tokens: 8 };
const parameters = { type: "object", properties: { lost: { type: "boolean" } }, required: ["lost"], additionalProperties: false };

const answer = await client.chat.completions.create({ ...settings, messages: talk });
let stream = "";
for await (const piece of await client.chat.completions.create({
  ...settings, messages: talk, stream: true, stream_options: { include_usage: true },
})) stream += piece.choices[0]?.delta?.content ?? "";
const helper = client.chat.completions.stream({ ...settings, messages: talk });
const gathered = (await helper.finalChatCompletion()).choices[0].message.content;
const again = await client.chat.completions.create({
  ...settings, messages: [...talk, answer.choices[0].message, { role: "user", content: "And now?" }],
});
const ran = [];
const runner = client.chat.completions.runTools({
  ...settings, max_tokens: 40, messages: talk, tool_choice: "required", tools: [{
    type: "function",
    function: { name: "card", parameters, parse: JSON.parse, function: (given) => { ran.push(given); return "found"; } },
  }],
}, { maxChatCompletions: 1 });
await runner.done().catch(() => {});
const response = await client.responses.create({ model, input: "Where is my card?", temperature: 0, max_output_tokens: 16 });
const floats = await client.embeddings.create({ model: encoder, input: ["one", "two"], encoding_format: "float" });
const packed = await client.embeddings.create({ model: encoder, input: ["one", "two"] }); // base64 inside
let refused = "";
try {
  await client.chat.completions.create({ ...settings, model: "nobody", messages: talk });
} catch (error) {
  refused = error instanceof OpenAI.NotFoundError ? error.code : String(error);
}
const models = [];
for await (const one of client.models.list()) models.push(one.id);
console.log(JSON.stringify({
  answer: answer.choices[0].message.content, stream, gathered,
  tokens: [answer.usage.completion_tokens, answer.usage.prompt_tokens],
  "second turn": typeof again.choices[0].message.content === "string",
  call: ran.map((given) => [typeof given.lost, Object.keys(given)]),
  response: response.output_text, vectors: floats.data.map((row) => row.embedding),
  packed: packed.data.map((row) => row.embedding), refused, models,
}));
