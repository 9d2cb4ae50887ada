// UNTESTED: written against the documented API of onnxruntime's Swift package, never compiled or run. Check it with the kit's fixtures.
//   .package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager", from: "1.20.0")
import CoreGraphics
import Foundation
import OnnxRuntimeBindings

struct Manifest: Decodable {
    struct Image: Decodable { let files: [String: String] }
    struct Text: Decodable {
        let files: [String: String]
        let context_length: Int
        let pad: Int64
        let fixed_length: Bool
    }
    let logit_scale: Double
    let image: Image
    let text: Text
}

enum ModelError: Error { case badPicture, badFolder }

/// An exported folder.
final class Model {
    let manifest: Manifest
    private let environment: ORTEnv
    private let image: ORTSession
    private let text: ORTSession

    init(folder: URL) throws {
        let content = try Data(contentsOf: folder.appendingPathComponent("clipling.json"))
        manifest = try JSONDecoder().decode(Manifest.self, from: content)
        environment = try ORTEnv(loggingLevel: .warning)
        guard let first = manifest.image.files["fp32"], let second = manifest.text.files["fp32"] else { throw ModelError.badFolder }
        image = try ORTSession(env: environment, modelPath: folder.appendingPathComponent(first).path, sessionOptions: nil)
        text = try ORTSession(env: environment, modelPath: folder.appendingPathComponent(second).path, sessionOptions: nil)
    }

    /// A unit row of an upright picture of any size: the graph resizes and normalises.
    func encode(image picture: CGImage) throws -> [Float] {
        let (width, height) = (picture.width, picture.height)
        var rgba = [UInt8](repeating: 255, count: width * height * 4)
        guard let context = CGContext(
            data: &rgba, width: width, height: height, bitsPerComponent: 8, bytesPerRow: width * 4,
            space: CGColorSpaceCreateDeviceRGB(), bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue
        ) else { throw ModelError.badPicture }
        context.draw(picture, in: CGRect(x: 0, y: 0, width: width, height: height))
        let rgb = NSMutableData(capacity: width * height * 3)!
        for place in stride(from: 0, to: rgba.count, by: 4) { rgb.append(&rgba[place], length: 3) }
        let shape = [1, height, width, 3].map { NSNumber(value: $0) }
        let pixels = try ORTValue(tensorData: rgb, elementType: .uInt8, shape: shape)
        return try row(image, ["pixels": pixels])
    }

    /// A unit row of the token ids of one text, with the start and end ids.
    func encode(tokens ids: [Int64]) throws -> [Float] {
        var filled = ids
        if manifest.text.fixed_length {
            filled += [Int64](repeating: manifest.text.pad, count: max(0, manifest.text.context_length - ids.count))
        }
        let data = NSMutableData(bytes: filled, length: filled.count * MemoryLayout<Int64>.size)
        let tokens = try ORTValue(tensorData: data, elementType: .int64, shape: [1, NSNumber(value: filled.count)])
        return try row(text, ["tokens": tokens])
    }

    private func row(_ session: ORTSession, _ inputs: [String: ORTValue]) throws -> [Float] {
        let outputs = try session.run(withInputs: inputs, outputNames: ["embedding"], runOptions: nil)
        let data = try outputs["embedding"]!.tensorData() as Data
        return data.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
    }
}
