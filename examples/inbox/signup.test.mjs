// Wait for a mail in a JavaScript test, with a client of Mailpit's API that knows nothing of waiting or of
// inboxes: npm install mailpit-api. Start "txsmtpd --handler=inbox" first.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import test from "node:test";
import { MailpitClient } from "mailpit-api";

const address = process.env.INBOX_URL ?? "http://127.0.0.1:8025";

// An inbox for one test: the base URL is its address, and by one header the server waits instead of the client.
function ownInbox() {
  const domain = `${randomUUID().slice(0, 8)}.test`;
  const fetchOptions = { headers: { Prefer: "wait=10" } };
  return { domain, inbox: new MailpitClient(`${address}/in/domain=${domain}/`, { fetchOptions }) };
}

test("a welcome comes", async () => {
  const { domain, inbox } = ownInbox();
  await inbox.sendMessage({
    // what the application does
    From: { Email: "shop@example.com" },
    To: [{ Email: `bob@${domain}` }],
    Subject: "Welcome",
    Text: "Your code is 123456.",
  });
  const message = await inbox.waitForMessage({ query: "subject:Welcome" });
  assert.match(message.Text, /123456/);
  await inbox.deleteMessages(); // only those of this inbox
});
