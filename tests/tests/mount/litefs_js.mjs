// litefs-js on a primary and on its replica: arguments are both mounts. Ends with "ok".
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import os from 'node:os'
import { createInterface } from 'node:readline'

const [primaryDir, replicaDir] = process.argv.slice(2)
const DATABASE_FILENAME = 'app.db'
process.env.LITEFS_DIR = replicaDir
process.env.DATABASE_FILENAME = DATABASE_FILENAME
const litefs = await import('litefs-js')

const children = []
async function start(dir) {
	const env = { ...process.env, LITEFS_DIR: dir, DATABASE_FILENAME, PORT: '0' }
	const child = spawn(process.execPath, ['app.js'], { env, stdio: ['ignore', 'pipe', 'inherit'] })
	children.push(child)
	for await (const line of createInterface({ input: child.stdout })) return `http://${line.split(' ').at(-1)}/visits`
	throw new Error('the app ended')
}

async function until(what, done) {
	const deadline = Date.now() + 60_000
	for (;;) {
		const found = await done()
		if (found) return found
		if (Date.now() > deadline) throw new Error(`did not happen: ${what}`)
		await new Promise(resolve => setTimeout(resolve, 10))
	}
}

async function instances() {
	const self = os.hostname()
	const here = { primaryInstance: self, currentInstance: self, currentIsPrimary: true }
	assert.deepEqual(await litefs.getInstanceInfo(primaryDir), here)
	assert.deepEqual(litefs.getInstanceInfoSync(primaryDir), here)
	const there = { primaryInstance: 'primary.host', currentInstance: self, currentIsPrimary: false }
	assert.deepEqual(await litefs.getInstanceInfo(), there)
	assert.deepEqual(litefs.getInstanceInfoSync(), there)
}

async function transactions() {
	const newest = await litefs.getTxNumber(primaryDir, DATABASE_FILENAME)
	assert.ok(newest > 0)
	await until('the replica has it', async () => (await litefs.getTxNumber()) === newest)
	assert.equal(await litefs.waitForUpToDateTxNumber(newest), true)
	assert.equal(await litefs.waitForUpToDateTxNumber(newest + 1000), false)
	assert.equal(await litefs.getTxNumber(primaryDir, 'none.db'), 0)
}

async function middlewares() {
	const [primary, replica] = [await start(primaryDir), await start(replicaDir)]
	const refused = await fetch(replica, { method: 'POST' })
	assert.equal(refused.status, 409)
	assert.equal(refused.headers.get('fly-replay'), 'instance=primary.host')
	for (let round = 1; round <= 5; round++) {
		const posted = await fetch(primary, { method: 'POST' })
		assert.equal(posted.status, 200)
		const cookie = posted.headers.getSetCookie()[0].split(';')[0]
		const number = await litefs.getTxNumber(primaryDir, DATABASE_FILENAME)
		assert.equal(cookie, `txnum=${number}`)
		// Its own write, or the advice to ask the primary; never an older state.
		await until('the replica serves it', async () => {
			const read = await fetch(replica, { headers: { cookie } })
			if (read.status === 409) return assert.equal(read.headers.get('fly-replay'), 'instance=primary.host')
			assert.equal(read.status, 200)
			assert.match(await read.text(), new RegExp(`^${round + 1} visits`))
			assert.match(read.headers.getSetCookie()[0], /^txnum=0;/)
			return true
		})
	}
	const read = await fetch(primary, { headers: { cookie: 'txnum=1' } })
	assert.match(await read.text(), /^6 visits/)
}

try {
	await instances()
	await transactions()
	await middlewares()
	console.log('ok')
} finally {
	children.forEach(child => child.kill())
}
