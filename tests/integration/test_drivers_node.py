"""node-postgres at its defaults, where Node.js and npm are installed and npm can get it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fix_drivers import CLIENTS, COPIED, FIRST_COPIED, PASSWORD, TURNS, USER, Ledger

PACKAGES = ("pg@8", "pg-copy-streams@7")
INSTALL_S = 60

PROGRAM = r"""
const { Pool } = require('pg');
const copy = require('pg-copy-streams');
const { pipeline } = require('node:stream/promises');
const { Readable, Writable } = require('node:stream');
const assert = require('node:assert');
const { clients, turns, copied, first, ...where } = JSON.parse(process.argv[2]);

const range = (size, make) => Array.from({ length: size }, (_, at) => make(at));
const textOf = (owner, number) => `Ünï-${owner}'\\"${number}`;

async function life(pool, owner) {
    const client = await pool.connect();
    try {
        for (let number = 0; number < turns; number++) {
            await client.query('BEGIN');
            await client.query('insert into item values ($1, $2, $3)', [owner, number, 'taken back']);
            await assert.rejects(client.query('select 1 / 0'), { code: '22012' });
            await client.query('ROLLBACK');
            await client.query('BEGIN');
            await client.query({ name: 'insert-item', text: 'insert into item values ($1, $2, $3)',
                                 values: [owner, number, textOf(owner, number)] });
            await client.query('COMMIT');
            const found = await client.query({ name: `own-${owner % 2}`, values: [owner],
                text: 'select number, text from item where owner = $1 and number < 1000 order by number' });
            assert.deepStrictEqual(found.rows, range(number + 1, (at) => ({ number: at, text: textOf(owner, at) })));
            // without an await between them they queue in the client, and each is sent when the one before is answered
            const sums = await Promise.all([1, 2, 3].map((n) => client.query('select $1::int + $2::int as sum', [n, number])));
            assert.deepStrictEqual(sums.map((one) => one.rows[0].sum), [1, 2, 3].map((n) => n + number));
        }
        const escaped = (text) => text.replaceAll('\\', '\\\\');
        const lines = range(copied, (at) => `${owner}\t${first + at}\t${escaped(textOf(owner, first + at))}\n`);
        await pipeline(Readable.from(lines), client.query(copy.from('copy item from stdin')));
        const chunks = [];
        const collect = new Writable({ write(chunk, _, done) { chunks.push(chunk); done(); } });
        const query = `select * from item where owner = ${owner} and number >= ${first} order by number`;
        await pipeline(client.query(copy.to(`copy (${query}) to stdout`)), collect);
        assert.strictEqual(Buffer.concat(chunks).toString(), lines.join(''));
    } finally {
        client.release();
    }
}

async function main() {
    const pool = new Pool({ ...where, max: clients });
    await Promise.all(range(clients, (owner) => life(pool, owner)));
    const answers = await Promise.all(range(10 * clients, (n) => pool.query('select $1::int as n', [n])));
    assert.deepStrictEqual(answers.map((answer) => answer.rows[0].n), range(10 * clients, (n) => n));
    await assert.rejects(pool.query({ name: 'wrong', text: 'select nonsense' }), { code: '42703' });
    await pool.end();
    console.log('done');
}

main().catch((error) => { console.error(error); process.exit(1); });
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the program and what it requires."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node-postgres: there is no node or no npm on the PATH")
    found = tmp_path_factory.mktemp("node")
    (found / "program.js").write_text(PROGRAM)
    (found / "package.json").write_text(json.dumps({"name": "client", "private": True}))
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", *PACKAGES]
    try:
        done = subprocess.run(command, cwd=found, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"node-postgres: npm has not installed it within {INSTALL_S} s")
    if done.returncode != 0:
        pytest.skip(f"node-postgres: npm cannot install it: {done.stderr.strip()[-300:]}")
    return found


def test_node_postgres(ledger: Ledger, directory: Path) -> None:
    arguments = {
        "host": ledger.proxy.host, "port": ledger.proxy.port, "user": USER, "password": PASSWORD, "database": "app",
        "clients": CLIENTS, "turns": TURNS, "copied": COPIED, "first": FIRST_COPIED,
    }  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    command = ["node", "program.js", json.dumps(arguments)]
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    ledger.check()
