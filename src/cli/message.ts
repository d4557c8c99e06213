/** What went wrong, and what to do about it where that is known. */
export const messageOf = (error: unknown): string => {
  // Node tries every address of a host and then says nothing but that all failed.
  if (error instanceof AggregateError) return error.errors.map(messageOf).join("\n");
  const { message } = error as Error;
  if (!/^cannot listen/.test(message)) return message;
  const name = message.startsWith("cannot listen for HTTP") ? "HTTP_ADDR" : "GRPC_ADDR";
  if (!message.includes("EADDRINUSE")) return `${message}\n${name} names the address.`;
  return `${message}\nAnother program, perhaps a Roster, has this port; set ${name} to another.`;
};
