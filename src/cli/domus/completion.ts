/** `domus completion bash`: completion for xl, made from its table of commands: their names, their options, and names of domains where a command wants one. */

import type { Command } from '../xl/command.ts';
import { COMMANDS } from '../xl/table.ts';

/** Options in a command's help: `-f FILE, --defconfig=FILE`. */
export function optionsOf({ options }: Command): string[] {
  const found = options.split('\n').flatMap((line) => {
    const start = /^\s*(-\S+(?: \S+,)?(?:,? +-\S+)*)/.exec(line)?.[1] ?? '';
    return start.match(/(?<![\w=-])--?[A-Za-z][\w-]*/g) ?? [];
  });
  return [...new Set(found)].sort();
}

/** The script: `source` it, or put it into a folder that bash-completion reads. */
export async function bashCompletion(): Promise<string> {
  const commands = await Promise.all(COMMANDS.map(({ load }) => load()));
  const cases = commands
    .map((command) => ({ command, options: optionsOf(command) }))
    .filter(({ options }) => options.length > 0)
    .map(({ command, options }) => `    ${command.name}) options='${options.join(' ')}' ;;`);
  const ofDomains = commands.filter(({ usage }) => /<Domain|\[Domain|\|Domain>/.test(usage)).map(({ name }) => name);
  const ofFiles = commands.filter(({ usage }) => /<ConfigFile>|<CheckpointFile>|<filename>/.test(usage));
  return `# Completion of xl for bash, made by "domus completion bash".
_domus_xl() {
  local word=\${COMP_WORDS[COMP_CWORD]} command= options= i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case \${COMP_WORDS[i]} in
    -*) ;;
    *) command=\${COMP_WORDS[i]}; break ;;
    esac
  done
  if [ -z "$command" ]; then
    COMPREPLY=($(compgen -W '${commands.map(({ name }) => name).join(' ')} help' -- "$word"))
    return
  fi
  if [ "$command" = help ]; then
    COMPREPLY=($(compgen -W '${commands.map(({ name }) => name).join(' ')}' -- "$word"))
    return
  fi
  case $word in
  -*)
    case $command in
${cases.join('\n')}
    esac
    COMPREPLY=($(compgen -W "$options" -- "$word"))
    return
    ;;
  esac
  COMPREPLY=()
  case $command in
  ${ofDomains.join('|')})
    local IFS=$'\\n'
    COMPREPLY+=($(compgen -W "$(xl vm-list 2>/dev/null | sed -e 1d -e 's/^[^ ]* *[0-9]* *//' -e 's/ *$//')" -- "$word"))
    ;;
  esac
  case $command in
  ${ofFiles.map(({ name }) => name).join('|')})
    local IFS=$'\\n'
    COMPREPLY+=($(compgen -f -- "$word"))
    ;;
  esac
}
complete -o filenames -F _domus_xl xl
`;
}
