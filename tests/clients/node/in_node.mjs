// One conversation with a server through a client library for Node; as in_python.py, which says what is asked.
//
//     node in_node.mjs LIBRARY

const { BASE_URL, API_KEY, MODEL } = process.env;
const [FIRST, SECOND, LONGEST] = ["Name a colour", "Another", 6];
const HISTORY = [{ role: "user", content: FIRST }];
const NEXT = { role: "user", content: SECOND };
const SCHEMA = { type: "object", properties: {} };
const TOOL = { type: "function", function: { name: "paint", description: "Paint.", parameters: SCHEMA } };

async function failures(ask, tools) {
  const cases = {
    key: { key: "fw_wrong" },
    model: { model: "nobody/none" },
    value: { temperature: 5 },
    tools: { tools },
  };
  const found = {};
  for (const [name, settings] of Object.entries(cases)) {
    try {
      await ask(settings);
      found[name] = 200;
    } catch (error) {
      found[name] = error.status ?? error.statusCode ?? error.lastError?.statusCode ?? String(error);
    }
  }
  return found;
}

async function openai() {
  const { default: OpenAI } = await import("openai");
  const ask = ({ messages = HISTORY, key = API_KEY, model = MODEL, temperature = 0, ...more }) =>
    new OpenAI({ baseURL: BASE_URL, apiKey: key, maxRetries: 0 }).chat.completions.create({
      model, messages, temperature, max_tokens: LONGEST, ...more,
    });
  const first = (await ask({})).choices[0].message;
  const second = (await ask({ messages: [...HISTORY, first, NEXT] })).choices[0].message.content;
  let stream = "";
  for await (const chunk of await ask({ stream: true })) stream += chunk.choices[0]?.delta?.content ?? "";
  return { first: first.content, second, stream, errors: await failures(ask, [TOOL]) };
}

async function langchain() {
  const { ChatOpenAI } = await import("@langchain/openai");
  const chat = ({ key = API_KEY, model = MODEL, temperature = 0 }) =>
    new ChatOpenAI({
      model, apiKey: key, temperature, maxTokens: LONGEST, maxRetries: 0, configuration: { baseURL: BASE_URL },
    });
  const ask = ({ tools, ...settings }) => {
    const model = chat(settings);
    return (tools ? model.bindTools(tools) : model).invoke(HISTORY);
  };
  const first = await ask({});
  const second = (await chat({}).invoke([HISTORY[0], first, NEXT])).content;
  let stream = "";
  for await (const chunk of await chat({}).stream(HISTORY)) stream += chunk.content;
  return { first: first.content, second, stream, errors: await failures(ask, [TOOL]) };
}

async function ai() {
  const { generateText, streamText, tool, jsonSchema } = await import("ai");
  const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
  const settings = ({ messages = HISTORY, key = API_KEY, model = MODEL, temperature = 0, ...more }) => ({
    model: createOpenAICompatible({ name: "mine", baseURL: BASE_URL, apiKey: key })(model),
    messages, temperature, maxOutputTokens: LONGEST, maxRetries: 0, ...more,
  });
  const ask = (given) => generateText(settings(given));
  const first = await ask({});
  const second = (await ask({ messages: [...HISTORY, ...first.response.messages, NEXT] })).text;
  let stream = "";
  for await (const piece of streamText(settings({})).textStream) stream += piece;
  const paint = tool({ description: "Paint.", inputSchema: jsonSchema(SCHEMA) });
  return { first: first.text, second, stream, errors: await failures(ask, { paint }) };
}

console.log(JSON.stringify(await { openai, langchain, ai }[process.argv[2]]()));
