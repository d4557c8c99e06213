/** What went wrong, and what to do about it where that is known. */
export const messageOf = (error: unknown): string => {
  // Node tries every address of a host and then says nothing but that all failed.
  if (error instanceof AggregateError) return error.errors.map(messageOf).join("\n");
  const { message } = error as Error;
  if (/^cannot listen .*EADDRINUSE/.test(message))
    return `${message}\nAnother program, perhaps a Roster, has this port; set GRPC_ADDR to another.`;
  return /^cannot listen/.test(message) ? `${message}\nGRPC_ADDR names the address.` : message;
};
