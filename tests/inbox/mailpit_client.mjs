// Calls everything that the npm package mailpit-api can call, and holds the answers against what they have to be.
// Arguments: the folder with the packages, the address of the inbox, a user and a password.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import test from "node:test";

const [place, base, username, password] = process.argv.slice(2);
const require = createRequire(`${place}/`);
const { MailpitClient } = require("mailpit-api");
const { MailpitClient: Listener } = require("mailpit-api-events"); // 1.9.1, the last that listens itself

const auth = { username, password };
const mailpit = new MailpitClient(base, { auth });
const image = Buffer.from("89504e470d0a1a0a0000000d49484452", "hex").toString("base64");
const html = `<div><p>Hello, <b>Bob</b>!</p>
  <p><img src="cid:missing"><a href="https://example.com/confirm?a=1&amp;b=2">confirm</a></p></div>`;
const mail = {
  From: { Email: "ann@example.org", Name: "Ann" },
  To: [{ Email: "bob@example.com", Name: "Bob" }],
  Cc: [{ Email: "carl@example.com", Name: "Carl" }],
  Bcc: ["dora@example.com"],
  ReplyTo: [{ Email: "reply@example.org", Name: "Reply" }],
  Subject: "Confirm your address",
  Text: "Your code is 123456.",
  HTML: html,
  Headers: { "List-Unsubscribe": "<mailto:leave@example.org>, <https://example.org/leave>" },
  Attachments: [
    { Content: image, Filename: "a.png" },
    { Content: image, Filename: "b.png", ContentID: "b@example.org", ContentType: "image/png" },
  ],
};

// What a value has to look like: a type, a list of one shape, or an object with exactly these keys.
function assertShape(value, shape, where = "answer") {
  if (typeof shape === "string") {
    assert.equal(typeof value, shape, where);
  } else if (Array.isArray(shape)) {
    assert.ok(Array.isArray(value), where);
    value.forEach((each, number) => assertShape(each, shape[0], `${where}[${number}]`));
  } else {
    assert.deepEqual(Object.keys(value).sort(), Object.keys(shape).sort(), where);
    for (const key of Object.keys(shape)) assertShape(value[key], shape[key], `${where}.${key}`);
  }
}

const address = { Name: "string", Address: "string" };
const summary = {
  ID: "string", MessageID: "string", Read: "boolean", From: address, To: [address], Cc: [address], Bcc: [address],
  ReplyTo: [address], Subject: "string", Created: "string", Username: "string", Tags: ["string"], Size: "number",
  Attachments: "number", Snippet: "string",
};
const list = {
  total: "number", unread: "number", count: "number", messages_count: "number", messages_unread: "number",
  start: "number", tags: ["string"], messages: [summary],
};
const part = {
  PartID: "string", FileName: "string", ContentType: "string", ContentID: "string", Size: "number",
  Checksums: { MD5: "string", SHA1: "string", SHA256: "string" },
};
const message = {
  ID: "string", MessageID: "string", From: address, To: [address], Cc: [address], Bcc: [address], ReplyTo: [address],
  ReturnPath: "string", Subject: "string", Date: "string", Tags: ["string"], Username: "string", Text: "string",
  HTML: "string", Size: "number", Inline: [part], Attachments: [part],
  ListUnsubscribe: { Header: "string", Links: ["string"], Errors: "string", HeaderPost: "string" },
};
const stats = { Type: "string", Data: { Total: "number", Unread: "number", Version: "string" } };

test("the client", async (t) => {
  let id;

  await t.test("information and configuration", async () => {
    assertShape(await mailpit.getInfo(), {
      Version: "string", LatestVersion: "string", Database: "string", DatabaseSize: "number", Messages: "number",
      Unread: "number", Tags: {},
      RuntimeStats: {
        Uptime: "number", Memory: "number", MessagesDeleted: "number", SMTPAccepted: "number",
        SMTPAcceptedSize: "number", SMTPRejected: "number", SMTPIgnored: "number",
      },
    });
    const configuration = await mailpit.getConfiguration();
    assertShape(configuration, {
      Label: "string", SpamAssassin: "boolean", ChaosEnabled: "boolean", DuplicatesIgnored: "boolean",
      HideDeleteAllButton: "boolean",
      MessageRelay: {
        Enabled: "boolean", SMTPServer: "string", ReturnPath: "string", AllowedRecipients: "string",
        BlockedRecipients: "string", OverrideFrom: "string", PreserveMessageIDs: "boolean",
        RecipientAllowlist: "string",
      },
    });
    assert.equal(configuration.ChaosEnabled, true);
  });

  await t.test("send, and wait", async () => {
    const waiting = mailpit.waitForMessage({ query: "subject:confirm" });
    const sent = await mailpit.sendMessage(mail);
    assertShape(sent, { ID: "string" });
    id = sent.ID;
    assert.equal((await waiting).ID, id);
    assert.equal((await mailpit.waitForMessages({ query: "to:bob@example.com", count: 1 })).messages_count, 1);
  });

  await t.test("a message", async () => {
    for (const found of [await mailpit.getMessageSummary(), await mailpit.getMessageSummary(id)]) {
      assertShape(found, message);
      assert.equal(found.Username, username);
      assert.equal(found.HTML.trimEnd(), html);
      assert.deepEqual(found.Bcc, [{ Name: "", Address: "dora@example.com" }]);
      assert.deepEqual(found.Attachments.map((each) => each.FileName), ["a.png"]);
      assert.deepEqual(found.Inline.map((each) => each.ContentID), ["b@example.org"]);
      assert.deepEqual(found.ListUnsubscribe.Links, ["mailto:leave@example.org", "https://example.org/leave"]);
      const attachment = await mailpit.getMessageAttachment(id, found.Attachments[0].PartID);
      assert.equal(attachment.type, "image/png");
      assert.equal(Buffer.from(await attachment.arrayBuffer()).toString("base64"), image);
      assert.equal((await mailpit.getAttachmentThumbnail(id, found.Attachments[0].PartID)).type, "image/jpeg");
    }
  });

  await t.test("its header and source", async () => {
    const headers = await mailpit.getMessageHeaders(id);
    const names = "Bcc Cc Content-Type Date From List-Unsubscribe Message-Id Mime-Version Reply-To Return-Path Subject To";
    assert.deepEqual(Object.keys(headers), names.split(" "));
    assertShape(Object.values(headers), [["string"]]);
    assert.match(await mailpit.getMessageSource(), /^From: Ann <ann@example.org>\r\n/m);
  });

  await t.test("lists and searches", async () => {
    assertShape(await mailpit.listMessages(), list);
    assertShape(await mailpit.listMessages(0, 10), list);
    const found = await mailpit.searchMessages({ query: `subject:"${mail.Subject}"`, start: 0, limit: 10 });
    assertShape(found, list);
    assert.equal(found.messages_count, 1);
    assert.equal((await mailpit.searchMessages({ query: "subject:nothing" })).messages.length, 0);
  });

  await t.test("tags", async () => {
    assert.equal(await mailpit.setTags({ IDs: [id], Tags: ["one"] }), "ok");
    assert.equal(await mailpit.renameTag("one", "two words"), "ok");
    assert.deepEqual(await mailpit.getTags(), ["two words"]);
    assert.equal(await mailpit.deleteTag("two words"), "ok");
    assert.deepEqual(await mailpit.getTags(), []);
  });

  await t.test("checks", async () => {
    assert.deepEqual(await mailpit.linkCheck(id, true), {
      Errors: 0,
      Links: [{ URL: "https://example.com/confirm?a=1&b=2", StatusCode: 0, Status: "not checked" }],
    });
    await assert.rejects(mailpit.spamAssassinCheck(id), /404/);
    const check = await mailpit.htmlCheck(id);
    const result = {
      Name: "string", Platform: "string", Family: "string", Version: "string", Support: "string", NoteNumber: "string",
    };
    assert.deepEqual(Object.keys(check).sort(), ["Platforms", "Total", "Warnings"]);
    assertShape(check.Total, {
      Tests: "number", Nodes: "number", Supported: "number", Partial: "number", Unsupported: "number",
    });
    assert.ok(check.Warnings.length > 0);
    for (const { Results, NotesByNumber, ...warning } of check.Warnings) {
      assertShape(Results, [result]);
      assert.equal(typeof NotesByNumber, "object");
      assertShape(warning, {
        Slug: "string", Title: "string", Description: "string", URL: "string", Category: "string", Tags: ["string"],
        Keywords: "string",
        Score: { Found: "number", Supported: "number", Partial: "number", Unsupported: "number" },
      });
    }
    await assert.rejects(mailpit.releaseMessage(id, { To: ["bob@example.com"] }), /400 Bad Request.*no relay/);
  });

  await t.test("chaos", async () => {
    const none = { ErrorCode: 451, Probability: 0 };
    const triggers = { Sender: { ErrorCode: 453, Probability: 15 }, Recipient: { ErrorCode: 452, Probability: 10 } };
    const set = { ...triggers, Authentication: { ErrorCode: 535, Probability: 0 } };
    assert.deepEqual(await mailpit.setChaosTriggers(triggers), set);
    assert.deepEqual(await mailpit.getChaosTriggers(), set);
    assert.deepEqual((await mailpit.setChaosTriggers()).Sender, none);
  });

  await t.test("the mail alone", async () => {
    assert.ok((await mailpit.renderMessageHTML()).includes(html));
    const embedded = await mailpit.renderMessageHTML(id, 1);
    assert.ok(embedded.includes('target="_blank" rel="noreferrer noopener"'));
    assert.ok((await mailpit.renderMessageText(id)).includes(mail.Text));
  });

  await t.test("an inbox of its own, and waiting on the server, without the client knowing", async () => {
    const own = new MailpitClient(`${base}/in/domain=own.test/`, {
      auth, fetchOptions: { headers: { Prefer: "wait=10" } },
    });
    const waiting = own.waitForMessage({ query: "subject:own" }, { timeout: 9000, interval: 100000 });
    await mailpit.sendMessage({ ...mail, To: [{ Email: "x@own.test" }], Cc: [], Bcc: [], Subject: "own" });
    assert.equal((await waiting).Subject, "own");
    assert.equal((await own.listMessages()).total, 1);
    assert.equal(await own.deleteMessages(), "ok");
    assert.deepEqual((await mailpit.listMessages()).messages.map((each) => each.Subject), [mail.Subject]);
  });

  await t.test("deleting", async () => {
    assert.equal(await mailpit.deleteMessages({ IDs: [id] }), "ok");
    await mailpit.sendMessage(mail);
    assert.equal(await mailpit.deleteMessagesBySearch({ query: "from:ann" }), "ok");
    assert.equal((await mailpit.listMessages()).total, 0);
    await mailpit.sendMessage(mail);
    assert.equal(await mailpit.deleteMessages(), "ok");
    assert.equal((await mailpit.listMessages()).total, 0);
  });

  await t.test("who is not known", async () => {
    const stranger = new MailpitClient(base, { auth: { username: "x", password: "y" } });
    await assert.rejects(stranger.getInfo(), /401 Unauthorized/);
  });

  await t.test("events", async () => {
    const listener = new Listener(base, auth);
    const seen = [];
    const opened = new Promise((resolve) => {
      const ready = setInterval(async () => {
        if (listener.webSocket?.readyState === 1) {
          clearInterval(ready);
          resolve();
        }
      }, 10);
    });
    listener.onEvent("*", (event) => seen.push(event));
    await opened;
    const next = async (act) => {
      seen.length = 0;
      const counted = listener.waitForEvent("stats");
      await act();
      await counted;
      return seen.slice();
    };
    let [event, count] = await next(async () => ({ ID: id } = await mailpit.sendMessage(mail)));
    assertShape(event, { Type: "string", Data: summary });
    assert.deepEqual([event.Type, event.Data.ID], ["new", id]);
    assertShape(count, stats);
    [event] = await next(() => mailpit.setReadStatus({ IDs: [id], Read: true }));
    assert.deepEqual(event, { Type: "update", Data: { ID: id, Read: true } });
    [event] = await next(() => mailpit.setTags({ IDs: [id], Tags: ["a"] }));
    assert.deepEqual(event, { Type: "update", Data: { ID: id, Tags: ["a"] } });
    [event] = await next(() => mailpit.deleteMessages({ IDs: [id] }));
    assert.deepEqual(event, { Type: "delete", Data: { ID: id } });
    [event, count] = await next(() => mailpit.deleteMessages());
    assert.deepEqual(event, { Type: "truncate", Data: null });
    assert.deepEqual([count.Data.Total, count.Data.Unread], [0, 0]);
    listener.disconnect();
  });
});
