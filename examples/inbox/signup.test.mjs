// Wait for a message in a JavaScript test, with the package mailpit-api: npm install mailpit-api.
// Start "txsmtpd --handler=inbox" first.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import test from "node:test";
import { MailpitClient } from "mailpit-api";

const address = process.env.INBOX_URL ?? "http://127.0.0.1:8025";

// An inbox for one test. The base URL selects the inbox. With the header Prefer, the server waits for the message.
function ownInbox() {
  const domain = `${randomUUID().slice(0, 8)}.test`;
  const fetchOptions = { headers: { Prefer: "wait=10" } };
  return { domain, inbox: new MailpitClient(`${address}/in/domain=${domain}/`, { fetchOptions }) };
}

test("a welcome message is sent", async () => {
  const { domain, inbox } = ownInbox();
  await inbox.sendMessage({
    // stands for the application
    From: { Email: "shop@example.com" },
    To: [{ Email: `bob@${domain}` }],
    Subject: "Welcome",
    Text: "Your code is 123456.",
  });
  const message = await inbox.waitForMessage({ query: "subject:Welcome" });
  assert.match(message.Text, /123456/);
  await inbox.deleteMessages(); // deletes only messages in this inbox
});
