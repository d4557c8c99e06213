import { cp, mkdir, rm, writeFile } from "node:fs/promises";
import {
  type DescEnum,
  type DescExtension,
  type DescField,
  type DescFile,
  type DescMessage,
  getExtension,
  hasExtension,
} from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import { toText } from "@bufbuild/protobuf/txtpb";
import {
  Edition,
  type FileDescriptorProto,
  FileOptionsSchema,
  FieldDescriptorProto_Label as Label,
  FieldDescriptorProto_Type as Type,
} from "@bufbuild/protobuf/wkt";
import {
  file_buf_validate_validate,
  PredefinedRulesSchema,
  predefined,
} from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";

// The protos of others are gathered from installed packages instead of being committed, so that
// they always fit the code that serves them and so that building needs no schema registry.
// `npm ci` runs this through `prepare`. Two other callers of `prepare` are left out there: npx, which
// links the checkout at its first call and would clear generated code under a running server, and
// installs without the development dependencies, which have no compiler.

const packages = new URL("../node_modules/", import.meta.url);
const target = new URL("../third_party/proto/", import.meta.url);

/** Path that imports expect → file inside node_modules. The two do not always have the same shape. */
const copies = {
  "google/rpc/code.proto": "google-gax/build/protos/google/rpc/code.proto",
  "google/rpc/error_details.proto": "google-gax/build/protos/google/rpc/error_details.proto",
  "google/rpc/status.proto": "google-gax/build/protos/google/rpc/status.proto",
  "grpc/health/v1/health.proto": "grpc-health-check/proto/health/v1/health.proto",
  "grpc/reflection/v1/reflection.proto":
    "@grpc/reflection/build/proto/grpc/reflection/v1/reflection.proto",
  "grpc/reflection/v1alpha/reflection.proto":
    "@grpc/reflection/build/proto/grpc/reflection/v1alpha/reflection.proto",
};

const lastFieldNumber = 0x1fffffff;

function indent(lines: string[]): string[] {
  return lines.map((line) => `  ${line}`);
}

/** Ranges of messages exclude their end and ranges of enums include it, hence `endOffset`. */
function reservedLines(
  ranges: { start: number; end: number }[],
  names: string[],
  endOffset: number,
): string[] {
  const numbers = ranges.map(({ start, end }) => {
    const last = end - endOffset;
    return start === last ? `${start}` : `${start} to ${last}`;
  });
  return [
    ...(numbers.length > 0 ? [`reserved ${numbers.join(", ")};`] : []),
    ...(names.length > 0 ? [`reserved ${names.map((name) => `"${name}"`).join(", ")};`] : []),
  ];
}

function fieldLines(field: DescField | DescExtension): string[] {
  const { proto } = field;
  const label = proto.label === Label.REPEATED ? "repeated " : "optional ";
  const type = proto.typeName || Type[proto.type].toLowerCase();
  const start = `${field.oneof ? "" : label}${type} ${proto.name} = ${proto.number}`;
  if (!proto.options || !hasExtension(proto.options, predefined)) {
    return [`${start};`];
  }
  const rules = toText(PredefinedRulesSchema, getExtension(proto.options, predefined));
  return [`${start} [(predefined) = {`, ...indent(rules.trimEnd().split("\n")), "}];"];
}

function messageLines({ proto, members }: DescMessage): string[] {
  const fields = members.flatMap((member) =>
    member.kind === "oneof"
      ? [`oneof ${member.name} {`, ...indent(member.fields.flatMap(fieldLines)), "}"]
      : fieldLines(member),
  );
  const extensions = proto.extensionRange.map(
    ({ start, end }) => `extensions ${start} to ${end > lastFieldNumber ? "max" : end - 1};`,
  );
  const reserved = reservedLines(proto.reservedRange, proto.reservedName, 1);
  return ["", `message ${proto.name} {`, ...indent([...reserved, ...fields, ...extensions]), "}"];
}

function enumLines({ proto }: DescEnum): string[] {
  const reserved = reservedLines(proto.reservedRange, proto.reservedName, 0);
  const values = proto.value.map(({ name, number }) => `${name} = ${number};`);
  return ["", `enum ${proto.name} {`, ...indent([...reserved, ...values]), "}"];
}

function extensionLines(extension: DescExtension): string[] {
  const body = indent(fieldLines(extension));
  return ["", `extend ${extension.extendee.typeName} {`, ...body, "}"];
}

function fileOptionLines({ options }: FileDescriptorProto): string[] {
  if (!options) return [];
  const message = reflect(FileOptionsSchema, options);
  return message.fields
    .filter((field) => message.isSet(field))
    .map((field) => `option ${field.name} = ${JSON.stringify(message.get(field))};`);
}

/**
 * Prints what buf/validate/validate.proto uses of the proto language: proto2, no nested types, no
 * services, and `predefined` as the only option of a field. Another syntax would need other labels,
 * so it is refused; whatever else is lost shows when the rules that need it no longer compile.
 */
function printFile(file: DescFile): string {
  if (file.edition !== Edition.EDITION_PROTO2) {
    throw new Error(`${file.name}.proto is no longer proto2`);
  }
  const lines = [
    'syntax = "proto2";',
    `package ${file.proto.package};`,
    ...file.proto.dependency.map((path) => `import "${path}";`),
    ...fileOptionLines(file.proto),
    ...file.extensions.flatMap(extensionLines),
    ...file.messages.flatMap(messageLines),
    ...file.enums.flatMap(enumLines),
  ];
  return `${lines.join("\n")}\n`;
}

await rm(target, { recursive: true, force: true });
for (const [path, source] of Object.entries(copies)) {
  await cp(new URL(source, packages), new URL(path, target));
}
const validate = new URL("buf/validate/validate.proto", target);
await mkdir(new URL(".", validate), { recursive: true });
await writeFile(validate, printFile(file_buf_validate_validate));
