import { expect, test } from 'vitest';
import { channelJson, parseChannel } from './channel.ts';

const parse = (spec: string, warned: string[] = []) => parseChannel(spec, 0, (line) => warned.push(line));

test('a channel is a pty or a socket with a path', () => {
  expect(parse('name=org.example.agent, connection=pty')).toEqual({
    devid: 1,
    name: 'org.example.agent',
    backendDomain: null,
    connection: { kind: 'pty' },
  });
  const socket = parse('connection=socket,path=/run/agent.sock,name=agent,backend=driver');
  expect(socket.connection).toEqual({ kind: 'socket', path: '/run/agent.sock' });
  expect(JSON.stringify(channelJson(socket))).toBe(
    '{"backend_domname":"driver","name":"agent","connection.socket":{"path":"/run/agent.sock"}}',
  );
});

test("what is wrong with a channel is told in xl's words", () => {
  expect(() => parse('name=a')).toThrow("channel has unknown 'connection'");
  expect(() => parse('name=a,connection=tcp')).toThrow("unknown channel connection 'tcp'");
  expect(() => parse('name=a,connection=socket')).toThrow("channel connection 'socket' requires path=..");
  expect(() => parse('connection=pty')).toThrow('channel 1 has no name');
  expect(() => parse('pty')).toThrow('failed to parse channel configuration: pty');
  const warned: string[] = [];
  parse('name=a,connection=pty,colour=red', warned);
  expect(warned).toEqual(["unknown channel parameter 'colour', ignoring"]);
});
