// pg's own way of writing a value as text; its types leave this module out.
declare module "pg/lib/utils.js" {
  export function prepareValue(value: unknown): string | Buffer | null;
}
