// Verifies an inclusion proof (C2SP tlog-proof, RFC 9162 section 2.1.3.2) with WebCrypto.  Nothing is sent anywhere.
"use strict";

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const hexOf = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const isSame = (one, other) => one.length === other.length && one.every((byte, at) => byte === other[at]);
const joined = (...parts) => Uint8Array.from(parts.flatMap((part) => [...part]));
const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));

class Doubt extends Error {}

const parseProof = (text) => {
  const form = /^c2sp\.org\/tlog-proof@v1\nextra ([A-Za-z0-9+/=]*)\nindex (\d+)\n((?:[A-Za-z0-9+/]{43}=\n)*)\n([^]+)$/;
  const found = form.exec(text);
  if (!found) throw new Doubt("This is no proof of the form c2sp.org/tlog-proof@v1 with its record.");
  const end = found[4].lastIndexOf("\n\n");
  const signed = found[4].slice(0, end + 1);
  const [origin, size, root] = signed.split("\n");
  const signatures = found[4].slice(end + 2).split("\n").filter(Boolean).map((line) => {
    const [, name, value] = /^\u2014 (\S+) (\S+)$/.exec(line) ?? [];
    if (!name) throw new Doubt("A line under the checkpoint is no signature.");
    const bytes = bytesOf(value);
    return { name, keyId: bytes.slice(0, 4), value: bytes.slice(4) };
  });
  const path = found[3].split("\n").filter(Boolean).map(bytesOf);
  return { record: bytesOf(found[1]), index: BigInt(found[2]), path, signed, origin, size: BigInt(size), root: bytesOf(root), signatures };
};

const rootFrom = async (leaf, index, size, path) => {
  if (index >= size) throw new Doubt("The record would lie behind the end of the log.");
  let [place, last, hash] = [index, size - 1n, leaf];
  for (const beside of path) {
    if (last === 0n) throw new Doubt("The path is longer than the tree is high.");
    if (place & 1n || place === last) {
      hash = await sha256(joined([1], beside, hash));
      while (!(place & 1n) && place !== 0n) [place, last] = [place >> 1n, last >> 1n];
    } else {
      hash = await sha256(joined([1], hash, beside));
    }
    [place, last] = [place >> 1n, last >> 1n];
  }
  if (last !== 0n) throw new Doubt("The path ends below the root.");
  return hash;
};

const parseKey = async (text) => {
  const [, name, id, material] = /^([^+\s]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+=*)$/.exec(text.trim()) ?? [];
  if (!name) throw new Doubt("This is no verifier key of the form NAME+HASH+KEY.");
  const key = bytesOf(material);
  if (key.length !== 33 || key[0] !== 1) throw new Doubt("The key is none of Ed25519.");
  const own = (await sha256(joined(new TextEncoder().encode(`${name}\n`), key))).slice(0, 4);
  if (hexOf(own) !== id) throw new Doubt("The key and its hash do not belong together: was all of it pasted?");
  return { name, id: own, public: key.slice(1) };
};

const checkSignature = async (proof, text) => {
  const key = await parseKey(text);
  if (key.name !== proof.origin) throw new Doubt(`The key is of ${key.name}, and the log is ${proof.origin}.`);
  const made = proof.signatures.filter((each) => each.name === key.name && isSame(each.keyId, key.id));
  if (!made.length) throw new Doubt("This key has not signed the checkpoint.");
  let imported;
  try {
    imported = await crypto.subtle.importKey("raw", key.public, { name: "Ed25519" }, false, ["verify"]);
  } catch {
    throw new Doubt("This browser knows no Ed25519. Save the proof and use `ledger verify-proof`.");
  }
  const signed = new TextEncoder().encode(proof.signed);
  for (const each of made) {
    if (!await crypto.subtle.verify("Ed25519", imported, each.value, signed)) throw new Doubt("The signature is not of this checkpoint.");
  }
  return `signed by ${key.name}: ${proof.size} events`;
};

const mark = (good) => {
  const badge = document.createElement("span");
  badge.className = `badge ${good ? "good" : "bad"}`;
  badge.textContent = good ? "\u2713 holds" : "\u2717 fails";
  return badge;
};

const section = document.querySelector("[data-proof]");
if (section && window.crypto?.subtle) {
  const [field, button, list] = ["#vkey", "button.main", ".checks"].map((each) => section.querySelector(each));
  const text = section.querySelector(".proof").textContent;
  section.querySelector("[data-check]").hidden = false;

  const verify = async () => {
    list.replaceChildren();
    list.hidden = false;
    let holds = true;
    const step = async (what, check) => {
      if (!holds) return;
      const item = document.createElement("li");
      try {
        const told = await check();
        item.append(mark(true), `${what}: ${told}`);
      } catch (problem) {
        holds = false;
        item.append(mark(false), `${what}. ${problem instanceof Doubt ? problem.message : "It cannot be read."}`);
      }
      list.append(item);
    };
    let proof;
    let leaf;
    await step("Record", async () => {
      proof = parseProof(text);
      leaf = await sha256(joined([0], proof.record));
      if (hexOf(leaf) !== section.dataset.eventHash) throw new Doubt("The record is not that of this event.");
      return `its SHA-256 is ${hexOf(leaf)}`;
    });
    await step("Path", async () => {
      const root = await rootFrom(leaf, proof.index, proof.size, proof.path);
      if (!isSame(root, proof.root)) throw new Doubt("It does not lead to the root of the checkpoint.");
      return `${proof.path.length} hashes lead to the root ${hexOf(root)}`;
    });
    await step("Signature", () => checkSignature(proof, field.value));
    list.dataset.result = holds ? "holds" : "fails";
  };

  button.addEventListener("click", verify);
  field.addEventListener("keydown", (event) => { if (event.key === "Enter") verify(); });
}
