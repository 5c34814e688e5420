// nodemailer's smtp-server: takes every message and forgets it.
"use strict";

const { readFileSync } = require("node:fs");
const { parseArgs } = require("node:util");
const { SMTPServer } = require("smtp-server");

const { values: told } = parseArgs({
    options: {
        port: { type: "string" },
        certificate: { type: "string" },
        key: { type: "string" },
        lmtp: { type: "boolean" },
    },
});

const server = new SMTPServer({
    name: "localhost",
    lmtp: told.lmtp ?? false,
    authOptional: true,
    disabledCommands: told.certificate ? ["AUTH"] : ["AUTH", "STARTTLS"],
    disableReverseLookup: true,
    logger: false,
    ...(told.certificate && { cert: readFileSync(told.certificate), key: readFileSync(told.key) }),
    onMailFrom(address, session, callback) {
        callback();
    },
    onRcptTo(address, session, callback) {
        callback();
    },
    onData(stream, session, callback) {
        const chunks = [];
        stream.on("data", (chunk) => chunks.push(chunk));
        stream.on("end", () => {
            Buffer.concat(chunks);
            callback(null, session.lmtpMode ? session.envelope.rcptTo.map(() => "OK") : "OK");
        });
    },
});
server.on("error", () => {}); // clients that are gone
server.listen({ port: Number(told.port), host: "127.0.0.1", backlog: 1024 });
