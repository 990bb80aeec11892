/**
 * A day of use: what somebody does on a console after the boot. What is done is drawn from invocations of real programs, few of which are common and many
 * rare (Zipf): days are alike and never the same.
 */
import type { Random } from '../../test/random.ts'

export interface Action {
  /** Before it is begun. */
  thinkMs: number
  command: string
}

const ACTIONS = 60
const THINK_MS_MIN = 500
const THINK_MS_MAX = 4000

/** The most common first. Each reads its program, libraries and data; none needs a network, or takes long on an emulated processor. */
export const INVOCATIONS: readonly string[] = [
  'ls -l --color /usr/bin',
  'git -C /root/project status || git init /root/project',
  'vim -es -c "syntax on" -c "edit /etc/services" -c "set ft=conf" -c "q!"',
  'man -P cat ls',
  'python3 -c "import json, urllib.request, email, http.client, subprocess, argparse"',
  'grep -rl Debian /usr/share/doc/a*',
  'perl -MData::Dumper -MPOSIX -MFile::Find -e "print Dumper(\\%INC)"',
  'less -F /usr/share/common-licenses/GPL-3',
  'echo "int main(void) { return 0; }" >/tmp/a.c; gcc -o /tmp/a /tmp/a.c',
  'sqlite3 /tmp/a.db "create table if not exists t(a); insert into t values (1); select count(*) from t"',
  'curl --version; curl file:///etc/services',
  'jq . /usr/share/nodejs/undici/package.json; jq -n "[range(100)] | add"',
  'find /usr/share -name "*.txt" -newer /etc/passwd',
  'git --version; git help -a',
  'make --version; make -p -f /dev/null || true',
  'convert -size 64x64 gradient:red-blue /tmp/a.png',
  'node -e "require(\'crypto\').createHash(\'sha256\'); require(\'zlib\'); require(\'http\')"',
  'tar -cf - /usr/share/perl5 | xz -0 | wc -c',
  'python3 -c "import sqlite3, ssl, asyncio, decimal, unittest, xml.dom.minidom"',
  'openssl req -x509 -newkey ed25519 -nodes -subj /CN=a -keyout /tmp/k -out /tmp/c',
  'aspell list -l en </usr/share/common-licenses/BSD',
  'man -P cat bash',
  'ffmpeg -v error -f lavfi -i testsrc=duration=0.2:size=64x64 -f rawvideo -y /tmp/a.raw',
  'ruby -rjson -rset -rtime -e "puts JSON.generate([Time.now])"',
  'bc -l </dev/null; echo "scale=20; 4*a(1)" | bc -l',
  'gs -q -dNOPAUSE -dBATCH -sDEVICE=pngmono -sOutputFile=/tmp/b.png -c "showpage"',
  'php -r "echo json_encode(get_loaded_extensions());"',
  'python3 -c "import numpy; print(numpy.linalg.norm([3, 4]))"',
  'echo "digraph { a -> b -> c }" | dot -Tsvg',
  'rsync -a /usr/share/doc/bash /usr/share/doc/git /tmp/copy',
  'gnuplot -e "set term dumb; plot sin(x)"',
  'grep -c ing /usr/share/dict/words',
  'gdb -batch -ex "info files" /bin/true',
  'groff -man -Tps /dev/null; zcat /usr/share/man/man1/git.1.gz | groff -man -Tutf8',
  'echo "puts [clock format 0]" | tclsh',
  'pygmentize -f html /usr/lib/python3/dist-packages/pygments/util.py',
  'convert -size 64x64 plasma: /tmp/p.jpg; identify -verbose /tmp/p.jpg',
  'units "3 furlongs" meters',
  'lua5.4 -e "print(string.rep(\'a\', 10))"; mc --version',
  'R --vanilla -s -e "summary(lm(dist ~ speed, cars))"',
  'pdfinfo -v; gs -q -dNOPAUSE -dBATCH -sDEVICE=pdfwrite -sOutputFile=/tmp/b.pdf -c "showpage"; pdftotext /tmp/b.pdf -',
  'zip -qr /tmp/a.zip /usr/share/vim/vim90/syntax',
]

export function dayOf(random: Random): Action[] {
  return Array.from({ length: ACTIONS }, () => ({ thinkMs: random.between(THINK_MS_MIN, THINK_MS_MAX), command: INVOCATIONS[zipf(INVOCATIONS.length, random)] }))
}

/** 0 .. below - 1, each with a probability that falls as one over its place. */
export function zipf(below: number, random: Random): number {
  let sum = 0
  for (let rank = 1; rank <= below; rank++) sum += 1 / rank
  let left = (random.uint32() / 2 ** 32) * sum
  for (let rank = 1; rank < below; rank++) {
    left -= 1 / rank
    if (left < 0) return rank - 1
  }
  return below - 1
}
